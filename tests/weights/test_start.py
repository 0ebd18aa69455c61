"""Pretrained weights made to fit: the head, positions, channels, and what they decide of the settings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit.config import Config, DigitsData, FolderData, ViTConfig, YolosHead
from vit.errors import UserError
from vit.models.vit import ViT, merge, split
from vit.models.yolos import Yolos
from vit.weights import Pretrained
from vit.weights import start as module
from vit.weights.start import fitted, prepare, settle, with_channels

MODEL = ViTConfig(patch=4, width=16, depth=2, heads=2, mlp=32, pool="token")
NAMES = ["cat", "dog", "eel"]


def pretrained(model=MODEL, size=(16, 16), channels=3, names=NAMES):
    rng = np.random.default_rng(0)
    params = {path: rng.normal(0, 0.3, x.shape).astype(np.float32) for path, x in shapes(names, size, channels, model).items()}
    return Pretrained(params, model, size, channels, len(names), names, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "runs/x, step 9", [])


def data(names=NAMES, size=(16, 16), channels=3):
    return {"dataset": "mine", "class_names": names, "image_size": list(size), "channels": channels}


def shapes(names=NAMES, size=(16, 16), channels=3, model=MODEL):
    build = lambda: split(ViT(model, image_size=size, channels=channels, classes=len(names), rngs=nnx.Rngs(0)))[1]  # noqa: E731
    return jax.eval_shape(build)


def logits(params, images, model=MODEL, size=(16, 16), classes=3):
    shapes = nnx.eval_shape(lambda: ViT(model, image_size=size, channels=images.shape[-1], classes=classes, rngs=nnx.Rngs(0)))
    return np.asarray(jax.jit(lambda p, x: merge(nnx.graphdef(shapes), p)(x)[0])(params, images))


def test_the_head_is_kept_for_the_same_classes_and_begins_anew_for_others():
    weights = pretrained()
    params, lines = fitted(weights, data(), shapes())
    assert params.keys() == weights.params.keys()
    assert lines == ["the head is kept: the same 3 classes"]
    for names in (["cat", "dog"], ["dog", "cat", "eel"]):
        params, lines = fitted(weights, data(names), shapes(names))
        assert weights.params.keys() - params.keys() == {"head/kernel", "head/bias"}
        assert lines == [f"the head begins anew, at zero: {len(names)} classes, the weights know 3 others"]
    bare = weights._replace(classes=0, class_names=[])
    assert fitted(bare, data(), shapes())[1] == ["the head begins anew, at zero: 3 classes, the weights know none"]


@pytest.mark.parametrize(("names", "size"), [(NAMES[:2], (16, 16)), (NAMES[:2], (24, 8)), (NAMES, (24, 8))])
def test_a_detectors_head_is_kept_but_for_what_tells_classes(names, size):
    """YOLOS: its tokens and its positions between the blocks are what its pretraining is worth."""
    images = jax.random.normal(jax.random.key(0), (2, *size, 3))

    def made(names, size):
        build = lambda: Yolos(MODEL, YolosHead(5, middle=True), **sizes, rngs=nnx.Rngs(0))  # noqa: E731
        sizes = {"image_size": size, "channels": 3, "classes": len(names)}
        return build, jax.eval_shape(lambda: split(build())[1])

    build, old = made(NAMES, (16, 16))
    rng = np.random.default_rng(0)
    params = {path: rng.normal(0, 0.3, x.shape).astype(np.float32) for path, x in old.items()}
    weights = pretrained()._replace(params=params)
    ours, lines = fitted(weights, data(names, size), made(names, size)[1])
    assert {path.split("/")[1] for path in params.keys() - ours.keys()} == ({"classify"} if names != NAMES else set())
    assert lines[-1].startswith("the head is kept")
    boxes = []
    for make, p in ((build, params), (made(names, size)[0], {**zeros(made(names, size)[1]), **ours})):
        graph = nnx.graphdef(nnx.eval_shape(make))
        boxes.append(merge(graph, {path: jnp.asarray(x) for path, x in p.items()})(images)[0]["boxes"])
    np.testing.assert_allclose(*boxes, atol=1e-5)
    other = {path: x for path, x in made(names, size)[1].items() if path != "head/tokens"}
    assert (
        "begins anew, at zero" in fitted(weights, data(NAMES[:2], size), {**other, "head/queries": old["head/tokens"]})[1][-1]
    )


def zeros(shapes):
    return {path: np.zeros(x.shape, x.dtype) for path, x in shapes.items()}


@pytest.mark.parametrize("pool", ["token", "mean"])
@pytest.mark.parametrize("size", [(24, 24), (8, 20)])
def test_positions_resampled_once_give_what_resampling_at_call_gives(size, pool):
    model = dataclasses.replace(MODEL, pool=pool)
    weights = pretrained(model)
    params, lines = fitted(weights, data(size=size), shapes(size=size, model=model))
    assert "positions resampled from 4 x 4 patches to" in lines[0]
    images = jax.random.normal(jax.random.key(0), (2, *size, 3))
    wanted = logits(weights.params, images, model)
    np.testing.assert_allclose(logits(params, images, model, size), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_other_channels(stem):
    model = dataclasses.replace(MODEL, stem=stem)
    grey = jax.random.normal(jax.random.key(0), (2, 16, 16, 1))
    colour = jnp.repeat(grey, 3, axis=3)
    weights = pretrained(model)  # three channels summed: a grey image in colour gives the same
    params, lines = fitted(weights, data(channels=1), shapes(channels=1))
    assert lines[0] == "the embedding of 1 channels is summed over the weights' 3"
    np.testing.assert_allclose(logits(params, grey, model), logits(weights.params, colour, model), rtol=1e-3, atol=1e-4)
    weights = pretrained(model, channels=1)
    params, _ = fitted(weights, data(channels=3), shapes(channels=3))
    np.testing.assert_allclose(logits(params, colour, model), logits(weights.params, grey, model), rtol=1e-3, atol=1e-4)


def test_four_channels_as_timm_repeats_them():
    kernel = np.arange(2 * 3 * 5, dtype=np.float32).reshape(2 * 3, 5)  # two places, three channels
    got = with_channels(kernel, 3, 4).reshape(2, 4, 5)
    parts = kernel.reshape(2, 3, 5)
    np.testing.assert_allclose(got, np.concatenate([parts, parts[:, :1]], axis=1) * 0.75)


def test_statistics_of_the_weights_are_taken_unless_given():
    weights = pretrained()
    config = Config(data=FolderData(dir="x"), auto=("data.mean", "data.std"))
    assert prepare(config, weights, data(), 10)[0].data.mean == (0.1, 0.2, 0.3)
    assert prepare(dataclasses.replace(config, auto=("data.std",)), weights, data(), 10)[0].data.mean == config.data.mean
    grey = dataclasses.replace(config, data=DigitsData())
    assert prepare(grey, weights, data(channels=1), 10)[0].data.std == pytest.approx((0.5,))


def test_weights_decide_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load", lambda text: pretrained())
    auto = tuple(
        f"model.{f.name}" for f in dataclasses.fields(ViTConfig) if f.name not in ("drop_path", "dropout", "dtype", "remat")
    )
    config = Config(
        weights="w", auto=(*auto, "data.size"), data=FolderData(dir="x"), model=ViTConfig(drop_path=0.3, dtype="bfloat16")
    )
    settled, weights, lines = settle(config, tmp_path)
    assert settled.model == dataclasses.replace(MODEL, drop_path=0.3, dtype="bfloat16")
    assert (settled.data.size, settled.auto, weights.source) == (16, (), "runs/x, step 9")
    assert lines == ["weights: runs/x, step 9: width 16, 2 blocks, patch 4, 3 channels, 16 x 16"]
    given = dataclasses.replace(config, auto=tuple(name for name in auto if name != "model.width"))
    with pytest.raises(UserError, match=r"--model\.width is 192, the weights have 16"):
        settle(given, tmp_path)
    agreeing = dataclasses.replace(given, model=dataclasses.replace(config.model, width=16))
    assert settle(agreeing, tmp_path)[0].model == settled.model


def test_without_weights_nothing_is_decided(tmp_path):
    assert settle(Config(), tmp_path) == (Config(), None, [])
    config, weights, lines = settle(Config(auto=("data.size", "steps")), tmp_path)
    assert (config.auto, weights) == (("steps",), None)
    assert lines == ["no --weights: this trains from scratch"]
