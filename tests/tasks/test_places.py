"""From logits to pixels against PyTorch's formula in NumPy, and windows against a plain loop."""

import hypothesis
import hypothesis.strategies as some
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit.tasks import places

# Each combination is compiled.
SIZES = [(1, 1, 1, 1), (1, 7, 23, 3), (5, 5, 5, 5), (6, 23, 2, 1), (3, 4, 12, 16), (16, 9, 7, 22), (23, 1, 11, 4), (8, 8, 8, 3)]


def interpolated(x, size):
    """torch.nn.functional.interpolate(mode="bilinear", align_corners=False) of (h, w, K)."""
    for axis, n in enumerate(size):
        m = x.shape[axis]
        place = np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, None)
        low = np.minimum(np.floor(place).astype(int), m - 1)
        high, part = np.minimum(low + 1, m - 1), place - low
        part = part.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
        x = np.take(x, low, axis) * (1 - part) + np.take(x, high, axis) * part
    return x


@pytest.mark.parametrize(("h", "w", "height", "width"), SIZES)
def test_bilinear(h, w, height, width):
    x = np.random.default_rng(h).normal(size=(2, h, w, 3)).astype(np.float32)
    out = jax.jit(places.resize, static_argnums=1)(jnp.asarray(x), (height, width))
    np.testing.assert_allclose(out, np.stack([interpolated(e, (height, width)) for e in x]), atol=1e-4)


def ids(*args):
    return jax.jit(places.ids, static_argnums=(3, 4))(*args)


@pytest.mark.parametrize("at_once", [2**25, 100])  # in one piece, in bands
def test_ids_at_each_image_s_own_size(monkeypatch, at_once):
    monkeypatch.setattr(places, "AT_ONCE", at_once)
    x = np.random.default_rng(0).normal(size=(3, 6, 8, 5)).astype(np.float32)
    sizes = np.array([[31, 40], [9, 17], [24, 32]], np.int32)
    shown = np.array([[24, 32]] * 3, np.int32)
    out = ids(jnp.asarray(x), jnp.asarray(sizes), jnp.asarray(shown), (24, 32), (33, 41))
    for one, (h, w), logits in zip(np.asarray(out), sizes, x, strict=True):
        assert np.mean(one[:h, :w] == interpolated(logits, (h, w)).argmax(axis=-1)) > 0.999


def test_what_was_padded_is_not_seen():
    x = np.zeros((1, 6, 8, 2), np.float32)
    x[:, :3, :4, 1] = 1.0  # the content, 12 of 24 rows and 16 of 32 columns
    x[:, 3:, :, 0] = x[:, :, 4:, 0] = 1.0
    content, size = jnp.asarray([[12, 16]]), jnp.asarray([[30, 40]])
    out = np.asarray(ids(jnp.asarray(x), size, content, (24, 32), (30, 40)))
    assert out[0, :28, :38].all()


def windowed(views):
    """Logits of every other pixel that depend on where in its window it is: averages show."""
    y = jnp.arange(0, 8, 2)[None, :, None, None] * 0.1
    return views[:, ::2, ::2] + y


sliding = jax.jit(places.sliding, static_argnums=(0, 3, 4))


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(some.integers(1, 40), some.integers(1, 40), some.sampled_from([0.0, 0.34, 0.6]))
def test_windows_average_where_they_overlap(height, width, overlap):
    window, canvas = (8, 12), (40, 40)
    image = np.zeros((1, *canvas, 3), np.float32)
    image[0, :height, :width] = np.random.default_rng(height * 41 + width).normal(size=(height, width, 3))
    size = jnp.asarray([[height, width]], jnp.int32)
    out = np.asarray(sliding(windowed, jnp.asarray(image), size, window, overlap))[0, :height, :width]

    def starts(length, side):
        spare, step = max(length - side, 0), max(1, int(side * (1 - overlap)))
        n = 1 + -(-spare // step)
        return [int(np.round(np.float32(i * spare) / np.float32(max(n - 1, 1)))) for i in range(n)]

    total, seen = np.zeros((*canvas, 3)), np.zeros((*canvas, 1))
    for y in starts(height, 8):
        for x in starts(width, 12):
            logits = np.asarray(windowed(image[:, y : y + 8, x : x + 12]))[0]
            total[y : y + 8, x : x + 12] += interpolated(logits, window)
            seen[y : y + 8, x : x + 12] += 1
    assert seen[:height, :width].all()
    assert np.mean(out == (total / np.maximum(seen, 1))[:height, :width].argmax(axis=-1)) > 0.995


def test_images_of_a_batch_do_not_touch_each_other():
    key = jax.random.key(0)
    images = jax.random.normal(key, (2, 20, 20, 2))
    size = jnp.asarray([[20, 20], [13, 9]])
    slide = jax.jit(lambda images, size: places.sliding(lambda x: x, images, size, (8, 8), 0.25))
    both = slide(images, size)
    alone = [slide(images[i : i + 1], size[i : i + 1])[0] for i in range(2)]
    assert np.array_equal(both[0], alone[0])
    assert np.array_equal(both[1, :13, :9], alone[1][:13, :9])
