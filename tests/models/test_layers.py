"""The layers against NumPy in float64, and their promises for any input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from vit.config import ViTConfig
from vit.models import attention as module
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


@pytest.mark.parametrize("alone", [False, True])
def test_the_gradient_of_gelu_is_scipys(alone, monkeypatch):
    monkeypatch.setattr(layers, "on_one_cpu", lambda: alone)
    x = np.concatenate([np.linspace(-12, 12, 4001), [0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4]])
    wanted = norm.cdf(x) + x * norm.pdf(x)
    np.testing.assert_allclose(jax.vmap(jax.grad(layers.gelu))(jnp.asarray(x, jnp.float32)), wanted, atol=3e-6)
    twice = jax.vmap(jax.grad(jax.grad(layers.gelu)))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(twice, (2 - x * x) * norm.pdf(x), atol=3e-6)
    assert jax.grad(lambda x: layers.gelu(x).astype(float))(jnp.bfloat16(1.5)).dtype == jnp.bfloat16


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


@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 3, 70, 8)])
def test_gradients_by_hand_are_those_of_the_formula(shape):
    q, k, v = (jax.random.normal(jax.random.key(i), shape) for i in range(3))
    k, v = k[..., :-1, :], v[..., :-1, :3]
    wanted = jax.grad(lambda *a: jnp.sum(jnp.sin(layers.attention(*a, jnp.ones(shape[-2] - 1, bool)))), argnums=(0, 1, 2))
    got = jax.grad(lambda *a: jnp.sum(jnp.sin(layers.attention(*a))), argnums=(0, 1, 2))
    for a, b in zip(jax.jit(got)(q, k, v), jax.jit(wanted)(q, k, v), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_norm_is_flax_s_with_its_gradients(dtype):
    ours = layers.LayerNorm(24, epsilon=1e-3, dtype=dtype, rngs=nnx.Rngs(0))
    theirs = nnx.LayerNorm(24, epsilon=1e-3, dtype=dtype, use_fast_variance=False, rngs=nnx.Rngs(0))
    x = (3 + 2 * jax.random.normal(jax.random.key(0), (4, 7, 24))).astype(dtype)
    scale, bias = jax.random.normal(jax.random.key(1), (2, 24))

    def results(norm):
        graph, state = nnx.split(norm)
        state = {"bias": nnx.Param(bias), "scale": nnx.Param(scale)}
        run = lambda state, x: jnp.sum(jnp.sin(nnx.merge(graph, state)(x).astype(jnp.float32)))  # noqa: E731
        return jax.jit(lambda state, x: (nnx.merge(graph, state)(x), jax.grad(run, argnums=(0, 1))(state, x)))(state, x)

    # flax sums the gradients of scale and bias in 16 bits
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == jnp.float32 else {"rtol": 2e-2, "atol": 0.2}
    for a, b in zip(jax.tree.leaves(results(ours)), jax.tree.leaves(results(theirs)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), **tolerance)


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [((9, 12), 3, 2), ((6, 9), 3, 3), ((8, 5), 5, 4), ((7, 7), 3, 1), ((2, 3), 5, 5)]
)
def test_a_convolution_as_a_product_is_the_convolution(size, kernel, stride):
    shared = {"padding": "SAME", "dtype": jnp.float32}
    ours, theirs = (c(3, 6, (kernel, kernel), stride, rngs=nnx.Rngs(0), **shared) for c in (layers.Conv, nnx.Conv))
    x = jax.random.normal(jax.random.key(1), (2, *size, 3))
    for conv in (ours, theirs):
        conv.bias[...] = jnp.arange(6.0)
    np.testing.assert_allclose(jax.jit(lambda x: ours(x))(x), theirs(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(*(jax.grad(lambda x, c=c: jnp.sum(c(x) ** 2))(x) for c in (ours, theirs)), rtol=1e-4, atol=1e-4)


def on_a_tpu(function, *args):
    """As a TPU would run its kernels, in JAX's simulation."""
    from jax.experimental.pallas import tpu

    with tpu.force_tpu_interpret_mode():
        return jax.jit(function)(*args)


def test_the_tpu_s_kernel_is_the_formula_with_its_gradients():
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 2, 130, 8)) for i in range(3))
    value = lambda f: jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(f(*a))), argnums=(0, 1, 2))  # noqa: E731
    got = on_a_tpu(value(module.tpu_attention), q, k, v)
    for a, b in zip(*map(jax.tree.leaves, (got, value(layers.attention)(q, k, v))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_long_sequences_go_the_device_s_way(monkeypatch):
    taken = []
    for name in ("attention", "long_attention", "tpu_attention", "gpu_attention"):
        monkeypatch.setattr(module, name, lambda q, k, v, mask=None, name=name: taken.append(name) or q)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(module, "cudnn_takes", lambda q, k, v: True)
    few, short, long = (jnp.zeros((1, 2, n, 8), jnp.bfloat16) for n in (module.LONG_ON_GPU, module.LONG, module.LONG + 1))
    for device in ("cpu", "gpu", "tpu"):
        monkeypatch.setattr(module, "platform", lambda device=device: device)
        for x, mask in ((few, None), (short, None), (long, None), (long, jnp.ones(module.LONG + 1, bool))):
            module.attend(x, x, x, mask)
    assert taken[:4] == ["attention", "attention", "long_attention", "long_attention"]
    assert taken[4:8] == ["attention", "gpu_attention", "gpu_attention", "long_attention"]
    assert taken[8:] == ["attention", "attention", "tpu_attention", "long_attention"]


def test_memory_of_a_long_sequence_is_linear_in_its_tokens():
    """A block's training step with 4,096 tokens takes at the most three times what 2,048 take, beyond the parameters."""
    config = ViTConfig(width=32, depth=1, heads=2, mlp=64)
    graph, params = nnx.split(layers.Block(config, 0.0, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    step = jax.jit(jax.grad(lambda params, x: jnp.sum(nnx.merge(graph, params)(x)[0] ** 2)))
    used = []
    for tokens in (2048, 4096):
        x = jax.ShapeDtypeStruct((1, tokens, 32), jnp.float32)
        used.append(step.lower(params, x).compile().memory_analysis().temp_size_in_bytes)
    print(used)
    assert used[1] <= 3 * used[0]


@pytest.mark.parametrize(("queries", "keys"), [(4, 4), (7, 7), (4, 7), (7, 4)])
def test_what_cudnn_is_given_is_even_and_gives_the_formula_with_its_gradients(queries, keys, monkeypatch):
    """JAX refuses cuDNN's gradient of odd numbers of tokens (seen on an H100); XLA stands in for it here."""
    kernel = jax.nn.dot_product_attention

    def even(q, k, v, implementation, **lengths):
        assert implementation == "cudnn"
        assert q.shape[1] % 2 == k.shape[1] % 2 == v.shape[1] % 2 == 0
        return kernel(q, k, v, implementation="xla", **lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", even)
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 3, n, 8)) for i, n in enumerate((queries, keys, keys)))
    value = lambda f: jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(f(*a))), argnums=(0, 1, 2))  # noqa: E731
    for a, b in zip(*map(jax.tree.leaves, (value(f)(q, k, v) for f in (module.gpu_attention, layers.attention))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
