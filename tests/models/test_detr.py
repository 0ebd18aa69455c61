"""DETR's decoder: what comes out, who sees whom, where boxes begin. The losses are in tests/tasks/test_queries.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit.config import DetrHead, ViTConfig
from vit.errors import UserError
from vit.models.boxes import centred
from vit.models.detr import Detr, Noisy, detr_flops, sine, spread
from vit.models.vit import ViT, merge, split

CONFIG = ViTConfig(patch=4, width=16, depth=1, heads=2, mlp=24, dropout=0.2)
HEAD = DetrHead(queries=5, layers=2, groups=2, denoising=3)
SHAPE = {"image_size": (16, 24), "channels": 3, "classes": 4}


def build(config=CONFIG):
    """With weights that are all in use: at first boxes don't move."""
    graph, params = split(Detr(config, HEAD, **SHAPE, rngs=nnx.Rngs(0)))
    keys = dict(zip(params, jax.random.split(jax.random.key(0), len(params)), strict=True))
    return merge(graph, {path: x + 0.1 * jax.random.normal(keys[path], x.shape) for path, x in params.items()})


def images(B=2, H=16, W=24):
    return jax.random.normal(jax.random.key(1), (B, H, W, 3))


def noisy(B=2, M=6):
    """Three copies of boxes of which the last two of each image aren't there."""
    low, high = jax.random.uniform(jax.random.key(2), (2, B, 3, M, 2))
    boxes = jnp.concatenate([jnp.minimum(low, high), jnp.maximum(low, high)], axis=-1)
    label = jax.random.randint(jax.random.key(3), (B, 3, M), 0, 4)
    return Noisy(boxes, label, jnp.broadcast_to(jnp.arange(M) < M - 2, (B, M)))


@functools.cache
def evaluated():
    return jax.jit(build())(images())


@functools.cache
def training():
    """A forward pass with all that training has, compiled once."""
    model = build()
    run = jax.jit(lambda x, noisy, keys: model(x, keys=keys, groups=2, noisy=noisy))
    return lambda x, noisy, seed=4: run(x, noisy, jax.random.split(jax.random.key(seed), 2))


def test_what_comes_out():
    result, out = evaluated()
    assert {name: x.shape for name, x in result.items()} == {"boxes": (2, 5, 4), "classes": (2, 5, 4)}
    assert {x.dtype for x in result.values()} == {jnp.dtype("float32")}
    assert [x["boxes"].shape for x in out["layers"]] == [(2, 5, 4)]
    assert (out["patches"].shape, out["mended"]) == ((2, 4, 6, 16), [])
    assert (result["boxes"][..., 2:] > result["boxes"][..., :2]).all()
    with pytest.raises(UserError, match="patches of 4x4 don't tile an image of 16x25"):
        build()(images(1, 16, 25))


def test_other_sizes_and_half_precision():
    result, _ = jax.jit(build(ViTConfig(patch=4, width=16, depth=1, heads=2, mlp=24, dtype="bfloat16")))(images(1, 8, 40))
    assert {name: (x.shape, x.dtype.name) for name, x in result.items()} == {
        "boxes": ((1, 5, 4), "float32"),
        "classes": ((1, 5, 4), "float32"),
    }


def test_all_beside_the_backbone_is_below_head():
    ours, plain = (
        jax.eval_shape(lambda of=of: split(of(rngs=nnx.Rngs(0)))[1])
        for of in (functools.partial(Detr, CONFIG, HEAD, **SHAPE), functools.partial(ViT, CONFIG, **{**SHAPE, "classes": 0}))
    )
    assert {path for path in ours if not path.startswith("head/")} == set(plain)
    assert ours["head/queries"].shape == (10, 16)
    assert ours["head/anchors"].shape == (10, 4)
    assert ours["head/labels"].shape == (4, 16)


def test_groups_and_noisy_boxes_do_not_see_one_another():
    model = build(ViTConfig(patch=4, width=16, depth=1, heads=2, mlp=24))
    run = jax.jit(lambda x, noisy: model(x, groups=2, noisy=noisy))
    result, out = run(images(), noisy())
    assert result["boxes"].shape == (2, 10, 4)
    assert [x["classes"].shape for x in out["mended"]] == [(2, 18, 4)] * 2
    alone, alone_out = evaluated()  # dropout is for training only, so this is the same model
    for name, x in alone.items():
        np.testing.assert_allclose(result[name][:, :5], x, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(out["layers"][0][name][:, :5], alone_out["layers"][0][name], rtol=1e-4, atol=1e-5)

    other = noisy()  # another second copy, and other boxes in the rows that hold none
    other = other._replace(boxes=other.boxes.at[:, 1].set(other.boxes[:, 0]).at[:, :, 4:].set(0.5))
    changed, changed_out = run(images(), other)
    np.testing.assert_allclose(changed["boxes"], result["boxes"], rtol=1e-5)
    copies, others = (x["mended"][-1]["boxes"].reshape(2, 3, 6, 4) for x in (out, changed_out))
    np.testing.assert_allclose(others[:, ::2, :4], copies[:, ::2, :4], rtol=1e-4, atol=1e-5)
    assert jnp.abs(others - copies)[:, 1, :4].max() > 1e-3


def test_boxes_begin_evenly_spread_and_classes_rare():
    model = Detr(CONFIG, HEAD, **SHAPE, rngs=nnx.Rngs(0))
    result, out = jax.jit(lambda x: model(x, groups=2))(images(1))
    for p in (result, *out["layers"]):
        np.testing.assert_allclose(centred(p["boxes"][0]), np.tile(spread(5), (2, 1)), rtol=1e-4)
    assert 0.001 < jax.nn.sigmoid(result["classes"]).mean() < 0.1


def test_spread():
    for count in (1, 5, 100):
        boxes = spread(count)
        assert boxes.shape == (count, 4)
        assert (boxes > 0).all()
        assert (boxes < 1).all()
    apart = np.linalg.norm(boxes[:, None, :2] - boxes[:, :2], axis=-1) + np.eye(100)
    assert apart.min() > 0.5 / 10  # half of what a grid would have


def test_sines_tell_places_apart():
    places = np.stack(np.meshgrid(*2 * [np.linspace(0, 1, 33)], indexing="ij"), axis=-1).reshape(-1, 2)
    waves = np.asarray(sine(jnp.asarray(places), 34))
    assert waves.shape == (33**2, 34)
    np.testing.assert_array_equal(waves[:, 32:], 0)
    like = waves @ waves.T
    assert (like.argmax(axis=1) == np.arange(33**2)).all()


def test_randomness_is_each_examples_own():
    run = training()
    first, turned = run(images(), noisy()), run(images()[::-1], jax.tree.map(lambda x: x[::-1], noisy()))
    assert jnp.abs(first[0]["boxes"] - turned[0]["boxes"][::-1]).max() > 1e-4  # a key of another example
    assert jnp.abs(run(images(), noisy(), 5)[0]["boxes"] - first[0]["boxes"]).max() > 1e-4
    twins = run(images()[jnp.array([0, 0])], jax.tree.map(lambda x: x[jnp.array([0, 0])], noisy()))
    np.testing.assert_allclose(twins[0]["boxes"][0], first[0]["boxes"][0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(twins[1]["mended"][-1]["boxes"][0], first[1]["mended"][-1]["boxes"][0], rtol=1e-4, atol=1e-5)


def test_operations_are_those_of_xla():
    model = build()
    wanted = jax.jit(lambda x: model(x)[0]).lower(jax.ShapeDtypeStruct((1, 16, 24, 3), jnp.float32)).cost_analysis()["flops"]
    got = detr_flops(CONFIG, HEAD, **SHAPE)
    assert 0.75 * wanted < got < wanted  # XLA counts norms, softmax and sines too
