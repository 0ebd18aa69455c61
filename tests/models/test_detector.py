"""The dense head: places, boxes of any size of image, operations; attention in windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.test_vit import dot_and_convolution_flops
from vit.config import DenseHead, ViTConfig
from vit.models.detector import Detector, detector_flops, places
from vit.models.vit import ViT, merge, split
from vit.models.windows import Windowed, saved_flops

SMALL = ViTConfig(patch=8, width=16, depth=3, heads=2, mlp=32, pool="mean")
HEAD = DenseHead(width=8, strides=(4, 8, 16), convs=1)


run = nnx.jit(lambda model, images: model(images))


def noisy(make):
    """A model with random values everywhere, which needs no compilation."""
    graph, shapes = nnx.graphdef(nnx.eval_shape(make)), jax.eval_shape(lambda: split(make())[1])
    rng = np.random.default_rng(0)
    return merge(graph, {path: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype) for path, x in shapes.items()})


def made(size=(32, 48), head=HEAD, config=SMALL, **windows):
    return Detector(config, head, image_size=size, channels=3, classes=5, rngs=nnx.Rngs(0), **windows)


@pytest.mark.parametrize("size", [(32, 48), (24, 40)])
def test_boxes_at_the_places_of_any_size(size):
    images = jax.random.normal(jax.random.key(0), (2, *size, 3))
    result, out = run(noisy(made), images)
    where, reach = places(size, HEAD.strides)
    N = sum(-(-size[0] // s) * -(-size[1] // s) for s in HEAD.strides)
    assert result["classes"].shape == (2, N, 5)
    assert where.shape == (N, 2)
    assert reach.shape == (N,)
    boxes = np.asarray(result["boxes"]) * np.tile(size, 2)
    assert (boxes[..., :2] < where).all()
    assert (boxes[..., 2:] > where).all()
    assert len(out["blocks"]) == 3
    np.testing.assert_array_equal(where[: size[1] // 4, 1], np.arange(2, size[1], 4))  # the first row, from left to right


def test_a_new_model_finds_nothing_and_each_place_a_box_of_two_strides():
    result = jax.jit(lambda: made()(jnp.zeros((1, 32, 48, 3)))[0])()
    np.testing.assert_allclose(jax.nn.sigmoid(result["classes"]), 0.01, rtol=1e-5)
    sides = np.asarray(result["boxes"][0, :, 2:] - result["boxes"][0, :, :2]) * (32, 48)
    np.testing.assert_allclose(sides, np.tile(2 * places((32, 48), HEAD.strides)[1][:, None], 2), rtol=1e-5)


def test_an_image_moved_by_a_patch_moves_the_answers():
    """Rows are rows and columns columns, through enlarging, shrinking and convolutions; seen where no border is near."""
    config = ViTConfig(**{**SMALL.__dict__, "depth": 1})
    model = noisy(lambda: made((128, 128), DenseHead(width=8, strides=(4, 8), convs=1), config))
    model.blocks = nnx.List([])  # attention sees borders
    model.pos_embed[...] = jnp.zeros_like(model.pos_embed[...])
    image = np.random.default_rng(0).normal(0, 1, (1, 128, 128, 3)).astype(np.float32)
    moved = np.roll(image, (8, 16), axis=(1, 2))
    a, b = (run(model, jnp.asarray(x))[0] for x in (image, moved))
    for stride, first, last in ((4, 0, 1024), (8, 1024, 1280)):
        n = 128 // stride
        x, y = (np.asarray(z["classes"])[0, first:last].reshape(n, n, 5) for z in (a, b))
        x = np.roll(x, (8 // stride, 16 // stride), axis=(0, 1))
        edge = 40 // stride
        np.testing.assert_allclose(y[edge:-edge, edge:-edge], x[edge:-edge, edge:-edge], atol=1e-4)


@pytest.mark.parametrize("size", [(32, 48), (48, 48)])
def test_flops_are_those_of_the_traced_program(size):
    model = noisy(lambda: made(size))
    expected = dot_and_convolution_flops(model, jnp.zeros((1, *size, 3)))
    assert detector_flops(SMALL, HEAD, image_size=size, channels=3, classes=5) == expected


# ---- windows ----

TOKENS = ViTConfig(patch=8, width=16, depth=3, heads=2, mlp=32, pool="token", registers=1)


def windowed(window, config=TOKENS, size=(40, 56), global_blocks=1):
    how = {"window": window, "global_blocks": global_blocks, "image_size": size, "channels": 3}
    return noisy(lambda: Windowed(config, **how, rngs=nnx.Rngs(0)))


def test_windows_are_attention_with_a_mask():
    """Without other tokens, windows are what a mask makes of attention to everything."""
    config = ViTConfig(**{**TOKENS.__dict__, "pool": "mean", "registers": 0, "class_token": False})
    model, images = windowed(2, config), jax.random.normal(jax.random.key(1), (2, 40, 56, 3))
    y, x = np.mgrid[:5, :7] // 2
    number = (10 * y + x).ravel()
    among = jnp.asarray(number[:, None] == number)
    assert model.whole == {2}

    @nnx.jit
    def masked(plain):
        z = plain.embed(images)
        for i, block in enumerate(plain.blocks):
            z, _ = block(z, None, None if i == 2 else among, False, None)
        return z

    graph = nnx.graphdef(nnx.eval_shape(lambda: ViT(config, image_size=(40, 56), channels=3, classes=0, rngs=nnx.Rngs(0))))
    np.testing.assert_allclose(run(model, images)[1]["blocks"][-1], masked(merge(graph, split(model)[1])), atol=2e-5)


def test_other_tokens_go_through_every_window():
    model, images = windowed(2, size=(32, 32)), jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
    out, through = run(model, images)[1], nnx.jit(lambda model, x: model.blocks[0](x, None, None, False, None)[0])
    blocks, x = out["blocks"], out["embedded"]
    firsts, patches = x[:, :2], x[:, 2:].reshape(1, 4, 4, 16)
    seen = []
    for r in (0, 2):
        for c in (0, 2):
            own = patches[:, r : r + 2, c : c + 2].reshape(1, 4, 16)
            y = through(model, jnp.concatenate([firsts, own], axis=1))
            seen.append(y)
            np.testing.assert_allclose(
                blocks[0][:, 2:].reshape(1, 4, 4, 16)[:, r : r + 2, c : c + 2].reshape(1, 4, 16), y[:, 2:], atol=1e-5
            )
    np.testing.assert_allclose(blocks[0][:, :2], np.mean([y[:, :2] for y in seen], axis=0), atol=1e-5)


def test_a_window_as_large_as_the_image_changes_nothing():
    images = jax.random.normal(jax.random.key(1), (1, 40, 56, 3))
    np.testing.assert_array_equal(run(windowed(7), images)[1]["tokens"], run(windowed(0), images)[1]["tokens"])
    assert windowed(0, global_blocks=2).whole == {1, 2}


@pytest.mark.parametrize("size", [(40, 56), (32, 32), (16, 16)])
def test_flops_that_windows_save(size):
    counts = [dot_and_convolution_flops(windowed(n, size=size), jnp.zeros((1, *size, 3))) for n in (0, 2)]
    assert saved_flops(TOKENS, 2, 1, size) == counts[0] - counts[1]
    assert saved_flops(TOKENS, 0, 1, size) == 0


def test_what_windows_cannot_show_is_refused():
    model, images = windowed(2), jnp.zeros((1, 40, 56, 3))
    with pytest.raises(ValueError, match="windows have no mask"):
        model(images, attention=True)
    model(images[:, :16, :16], attention=True)  # no larger than a window
