"""The layers against NumPy in float64, and their promises for any input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from vit.models import layers, positions


def reference(q, k, v, mask=None):
    """softmax(QKᵀ/√d + mask)V in float64; a row that sees nothing gives zeros."""
    scores = q.astype(np.float64) @ np.swapaxes(k, -1, -2).astype(np.float64) / np.sqrt(q.shape[-1])
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    top = scores.max(axis=-1, keepdims=True)
    e = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = e.sum(axis=-1, keepdims=True)
    return (e / np.where(total == 0, 1, total)) @ v.astype(np.float64)


@st.composite
def attention_inputs(draw):
    batch = draw(st.sampled_from([(), (1,), (3,), (2, 3)]))
    queries, keys, d, dv = draw(st.sampled_from([(1, 1, 1, 1), (1, 9, 4, 2), (7, 1, 3, 5), (5, 5, 12, 12), (12, 6, 1, 8)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.1, 1.0, 2.0]))  # float32 scores of hundreds have no 1e-5 left
    q, k, v = (
        rng.normal(size=(*batch, n, width)).astype(np.float32) * s
        for n, width, s in ((queries, d, scale), (keys, d, scale), (keys, dv, 1.0))
    )
    kind = draw(st.sampled_from(["none", "boolean", "additive", "both ways"]))
    allowed = rng.random((*batch, queries, keys)) < draw(st.sampled_from([0.0, 0.3, 0.8]))
    mask = {
        "none": None,
        "boolean": allowed,
        "additive": rng.normal(size=allowed.shape).astype(np.float32),
        "both ways": np.where(allowed, rng.normal(size=allowed.shape), -np.inf).astype(np.float32),
    }[kind]
    return q, k, v, mask


attention = jax.jit(layers.attention)


@settings(deadline=None, max_examples=40)
@given(attention_inputs())
def test_attention_is_the_formula(inputs):
    q, k, v, mask = inputs
    got = attention(*map(jnp.asarray, (q, k, v)), None if mask is None else jnp.asarray(mask))
    np.testing.assert_allclose(got, reference(q, k, v, mask), atol=1e-5)


@pytest.mark.parametrize("additive", [False, True])
def test_a_row_that_may_attend_to_nothing_is_zero_forward_and_backward(additive):
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 5, 4))
    allowed = jnp.ones((5, 5), bool).at[2].set(False)
    mask = jnp.where(allowed, 0.0, -jnp.inf) if additive else allowed

    def total(q, k, v):
        return jnp.sum(layers.attention(q, k, v, mask) ** 2)

    assert not np.any(attention(q, k, v, mask)[:, 2])
    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(q, k, v)
    assert all(np.isfinite(g).all() for g in gradients)
    assert not np.any(gradients[0][:, 2])
    others = np.array([0, 1, 3, 4])
    assert np.all(np.abs(np.asarray(gradients[0])[:, others]).sum(axis=-1) > 0)


def test_the_worked_example():
    x = jnp.array([[1.0, 0, 1], [0, 1, 0], [1, 1, 1]])
    np.testing.assert_allclose(layers.attention(x, x, x)[0], [0.8639, 0.5681, 0.8639], atol=5e-5)


def test_integers_are_numbers_too():
    x = jnp.array([[1, 0, 1], [0, 1, 0], [1, 1, 1]])
    np.testing.assert_allclose(layers.attention(x, x, x)[0], [0.8639, 0.5681, 0.8639], atol=5e-5)
    mask = jnp.array([[1, 0, 1]] * 3)
    np.testing.assert_array_equal(layers.attention_weights(x, x, mask), layers.attention_weights(x, x, mask == 1))


def test_normalisation_keeps_its_digits_far_from_zero():
    x = np.random.default_rng(0).normal(1000, 1, (4, 32)).astype(np.float32)
    wanted = (x - x.mean(-1, keepdims=True, dtype=np.float64)) / np.sqrt(x.var(-1, keepdims=True, dtype=np.float64) + 1e-6)
    np.testing.assert_allclose(layers.LayerNorm(32, rngs=nnx.Rngs(0))(jnp.asarray(x)), wanted, atol=1e-3)


def test_softmax_is_float32_whatever_the_inputs():
    x = jax.random.normal(jax.random.key(0), (4, 3), jnp.bfloat16)
    assert layers.attention_weights(x, x).dtype == jnp.float32
    assert layers.attention(x, x, x).dtype == jnp.bfloat16


def test_self_attention_is_heads_side_by_side():
    D, heads = 12, 3
    module = layers.SelfAttention(D, heads, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 5, D))
    got, weights = jax.jit(lambda x: module(x, None, True))(x)
    kernel, bias = np.asarray(module.qkv.kernel[...], np.float64), np.asarray(module.qkv.bias[...], np.float64)
    q, k, v = np.split(np.asarray(x, np.float64) @ kernel + bias, 3, axis=-1)
    parts = [reference(*(y[..., h * 4 : h * 4 + 4] for y in (q, k, v))) for h in range(heads)]
    wanted = np.concatenate(parts, axis=-1) @ np.asarray(module.proj.kernel[...]) + np.asarray(module.proj.bias[...])
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert weights.shape == (2, heads, 5, 5)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("whole", [False, True])
def test_dropout_keeps_the_mean_and_each_example_to_its_key(whole):
    keys = jax.random.split(jax.random.key(0), 4000)
    x = jnp.ones((4000, 3, 2))
    y = np.asarray(layers.dropout(x, 0.25, keys, whole))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert abs(y.mean() - 1) < 0.03
    if whole:
        assert np.all(y == y[:, :1, :1])
    np.testing.assert_array_equal(layers.dropout(x[:7], 0.25, keys[:7], whole), y[:7])
    assert layers.dropout(x, 0.25, None, whole) is x


def test_patch_embedding_cuts_and_maps():
    P, C, D = 2, 3, 5
    module = layers.PatchEmbed(P, C, D, dtype=jnp.float32, rngs=nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (2, 4, 6, C))
    got = module(images)
    assert got.shape == (2, 2, 3, D)
    patch = np.asarray(images)[1, 2:4, 4:6].reshape(-1)  # second row, third column of patches
    np.testing.assert_allclose(got[1, 1, 2], patch @ np.asarray(module.proj.kernel[...]), atol=1e-5)


@pytest.mark.parametrize(("patch", "strides"), [(1, [1]), (4, [2, 2]), (12, [2, 2, 3]), (14, [2, 7]), (7, [7])])
def test_the_convolutional_stem_makes_the_same_grid(patch, strides):
    stem = layers.ConvStem(patch, 3, 16, dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert [c.strides if isinstance(c.strides, int) else c.strides[0] for c in stem.convs] == strides
    assert jax.jit(stem)(jnp.zeros((1, 2 * patch, 3 * patch, 3))).shape == (1, 2, 3, 16)


def test_sincos_positions_are_moco_v3s():
    h, w, D = 3, 5, 8
    got = positions.sincos_positions(h, w, D)[0].reshape(h, w, D)
    omega = 1 / 10_000 ** (np.arange(D // 4) / (D // 4 - 1))
    for row in range(h):
        for column in range(w):
            wanted = [*np.sin(column * omega), *np.cos(column * omega), *np.sin(row * omega), *np.cos(row * omega)]
            np.testing.assert_allclose(got[row, column], wanted, atol=1e-6)


def test_positions_are_resampled_smoothly_and_in_place():
    rows = jnp.linspace(0, 1, 8)[:, None, None] * jnp.ones((8, 8, 1))
    columns = jnp.swapaxes(rows, 0, 1)
    table = jnp.concatenate([rows, columns], axis=-1).reshape(1, 64, 2)
    assert positions.resample_positions(table, (8, 8), (8, 8)) is table
    out = np.asarray(positions.resample_positions(table, (8, 8), (4, 16))).reshape(4, 16, 2)
    assert np.all(np.diff(out[:, :, 0], axis=0) > 0)
    assert np.ptp(out[:, :, 0], axis=1).max() < 1e-5
    assert np.all(np.diff(out[2, 2:-2, 1]) > 0)
    assert np.ptp(out[:, :, 1], axis=0).max() < 1e-5


@given(st.integers(1, 5000))
def test_prime_factors(n):
    factors = layers.prime_factors(n)
    assert np.prod(factors, dtype=int) == n
    assert all(all(p % d for d in range(2, p)) for p in factors)


@pytest.mark.parametrize("masked", [False, True])
def test_fused_attention_is_the_same_with_its_gradients_and_weights(masked, monkeypatch):
    plain, fused = (layers.SelfAttention(12, 3, fused=f, dtype=jnp.float32, rngs=nnx.Rngs(0)) for f in (False, True))
    x = jax.random.normal(jax.random.key(1), (2, 7, 12))
    mask = jnp.ones((7, 7), bool).at[2].set(False) if masked else None  # its third row may attend to nothing

    def results(module):
        graph, state = nnx.split(module)
        gradients = jax.grad(lambda state, x: jnp.sum(jnp.sin(nnx.merge(graph, state)(x, mask)[0])), argnums=(0, 1))
        return jax.tree.leaves(jax.jit(lambda s, x: (module(x, mask)[0], *module(x, mask, True), gradients(s, x)))(state, x))

    for a, b in zip(results(plain), results(fused), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    calls = []
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, k, v: calls.append(q.shape) or q)
    fused(x, mask)
    assert calls == ([] if masked else [(2, 7, 3, 4)])  # the flag chooses, and a mask overrules it
