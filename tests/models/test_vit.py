"""The backbone: published sizes, a NumPy reference of the whole forward pass, any image size."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

import vit
from vit.config import ViTConfig
from vit.errors import UserError
from vit.models.vit import ViT, flops, merge, split

SMALL = {"width": 24, "depth": 2, "heads": 3, "mlp": 40}


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Ti/16", 5_717_416),
        ("S/16", 22_050_664),
        ("B/16", 86_567_656),
        ("B/32", 88_224_232),
        ("L/16", 304_326_632),
        ("H/14", 632_045_800),
        ("g/14", 1_012_611_432),
    ],
)
def test_parameter_counts(name, parameters):
    def count(depth):
        config = ViTConfig.variant(name, depth=depth)
        model = nnx.eval_shape(lambda: ViT(config, image_size=(224, 224), channels=3, classes=1000, rngs=nnx.Rngs(0)))
        return sum(math.prod(x.shape) for _, x in nnx.to_flat_state(nnx.state(model)))

    depth = ViTConfig.variant(name).depth
    assert count(1) + (depth - 1) * (count(2) - count(1)) == parameters  # tracing 40 blocks would take ten seconds
    if name == "Ti/16":
        assert count(depth) == parameters


def test_create_gives_a_module_with_class_token_and_learned_positions_at_224():
    model = vit.create("Ti/32", classes=7, depth=1)
    assert isinstance(model, nnx.Module)
    _, params = split(model)
    assert params["cls_token"].shape == (1, 1, 192)
    assert params["pos_embed"].shape == (1, 50, 192)
    assert jax.jit(lambda x: model(x)[0])(images(2, 224, 224, 3)).shape == (2, 7)


def test_parameters_have_string_paths():
    _, params = made("Ti/16", **SMALL, classes=5)
    block = [
        f"{layer}/{name}"
        for layer, names in {
            "attn/proj": ("bias", "kernel"),
            "attn/qkv": ("bias", "kernel"),
            "mlp/fc1": ("bias", "kernel"),
            "mlp/fc2": ("bias", "kernel"),
            "norm1": ("bias", "scale"),
            "norm2": ("bias", "scale"),
        }.items()
        for name in names
    ]
    wanted = {f"blocks/{i}/{name}" for i in range(2) for name in block}
    wanted |= {"cls_token", "pos_embed", "patch_embed/proj/kernel", "patch_embed/proj/bias"}
    assert set(params) == wanted | {"norm/scale", "norm/bias", "head/kernel", "head/bias"}


def numpy_vit(params, x, patch, heads, depth):
    """The same network in float64, from the paper."""
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}

    def dense(x, name):
        return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * p[f"{name}/scale"] + p[f"{name}/bias"]

    def attend(x, name):
        q, k, v = np.split(dense(x, f"{name}/qkv"), 3, axis=-1)
        d = q.shape[-1] // heads
        out = []
        for h in range(heads):
            q1, k1, v1 = (y[:, h * d : (h + 1) * d] for y in (q, k, v))
            e = np.exp(q1 @ k1.T / np.sqrt(d))
            out.append(e / e.sum(-1, keepdims=True) @ v1)
        return dense(np.concatenate(out, -1), f"{name}/proj")

    logits = []
    for image in np.asarray(x, np.float64):
        H, W, _ = image.shape
        tokens = [image[i : i + patch, j : j + patch].ravel() for i in range(0, H, patch) for j in range(0, W, patch)]
        t = np.concatenate([p["cls_token"][0], dense(np.stack(tokens), "patch_embed/proj")]) + p["pos_embed"][0]
        for b in range(depth):
            t = t + attend(norm(t, f"blocks/{b}/norm1"), f"blocks/{b}/attn")
            h = dense(norm(t, f"blocks/{b}/norm2"), f"blocks/{b}/mlp/fc1")
            t = t + dense(h * (1 + erf(h / np.sqrt(2))) / 2, f"blocks/{b}/mlp/fc2")
        logits.append(dense(norm(t, "norm")[0], "head"))
    return np.stack(logits)


def random_params(make, seed=3):
    """A model's structure, and random parameters everywhere, so that no bias, scale or head is silently ignored.

    Nothing is computed: drawing from JAX's generators would be compiled for every shape.
    """
    graph, rng = None, np.random.default_rng(seed)

    def parts():
        nonlocal graph
        graph, params = split(make())
        return params

    shapes = jax.eval_shape(parts)
    return graph, {name: jnp.asarray(0.3 * rng.standard_normal(x.shape, np.float32)) for name, x in shapes.items()}


def made(name, **changes):
    return random_params(lambda: vit.create(name, **changes))


def run(graph, params, x, **more):
    """Compiled as a whole: quicker than piece by piece."""
    return jax.jit(lambda params, x: merge(graph, params)(x, **more))(params, x)


def test_the_forward_pass_is_the_papers():
    graph, params = made("Ti/4", **SMALL, image_size=(8, 12), classes=5)
    x = images(3, 8, 12, 3)
    got, _ = run(graph, params, x)
    np.testing.assert_allclose(got, numpy_vit(params, x, 4, 3, 2), rtol=1e-4, atol=1e-4)


# Every pair of a position, a stem and a pool.
@pytest.mark.parametrize(
    ("position", "stem", "pool"),
    [
        ("learned", "patch", "token"), ("sincos", "conv", "token"), ("sincos", "patch", "mean"), ("learned", "conv", "mean"),
        ("learned", "patch", "map"), ("sincos", "conv", "map"),
    ],
)  # fmt: skip
def test_any_size_that_the_patch_divides(position, stem, pool):
    changes = {**SMALL, "depth": 1, "position": position, "stem": stem, "pool": pool}
    graph, params = made("Ti/4", **changes, image_size=16, classes=5)
    for height, width in ((16, 16), (4, 4), (8, 28)):
        result, out = run(graph, params, images(2, height, width, 3))
        assert result.shape == (2, 5)
        assert np.isfinite(result).all()
        assert out["patches"].shape == (2, height // 4, width // 4, 24)
        assert out["tokens"].shape == (2, height // 4 * width // 4 + (pool == "token"), 24)
        np.testing.assert_array_equal(out["patches"].reshape(2, -1, 24), out["tokens"][:, pool == "token" :])
    assert ("cls_token" in params) == (pool == "token")
    assert ("pos_embed" in params) == (position == "learned")


@pytest.mark.parametrize("size", [(15, 16), (16, 18), (2, 16), (0, 16)])
def test_a_size_that_the_patch_does_not_divide_is_refused(size):
    model = vit.create("Ti/4", **SMALL, image_size=16, classes=5)
    with pytest.raises(UserError, match=f"patches of 4x4 don't tile an image of {size[0]}x{size[1]}"):
        model(jnp.zeros((1, *size, 3)))


@pytest.mark.parametrize("name", ["S16", "XL/16", "S/0", "S/x", "", "S/16/2", "S/²"])
def test_a_wrong_name_is_refused(name):
    with pytest.raises(UserError, match="there is no ViT called"):
        vit.create(name)


def test_an_impossible_size_is_refused():
    with pytest.raises(UserError, match="can't be shared by 5 heads"):
        vit.create("Ti/16", heads=5)
    with pytest.raises(UserError, match="--depth can't be 0"):
        vit.create("Ti/16", depth=0)
    for wrong in ({"classes": -1}, {"channels": 0}):
        with pytest.raises(UserError, match="make no model"):
            vit.create("Ti/16", **wrong)


def test_every_intermediate_is_there_and_attention_only_on_request():
    graph, params = made("Ti/4", **SMALL, image_size=8, classes=5)

    @jax.jit
    def everything(params, x):
        model = merge(graph, params)
        result, out = model(x)
        return result, out, model.norm(out["blocks"][-1]), model.head(out["pooled"]), model(x, attention=True)

    result, out, normed, headed, (again, more) = everything(params, images(2, 8, 8, 3))
    assert set(out) == {"embedded", "blocks", "tokens", "patches", "pooled"}
    assert len(out["blocks"]) == 2
    np.testing.assert_allclose(normed, out["tokens"], atol=1e-6)
    np.testing.assert_allclose(headed, result, atol=1e-6)
    np.testing.assert_allclose(again, result, atol=1e-6)
    assert [w.shape for w in more["attention"]] == [(2, 3, 5, 5)] * 2


def test_a_mask_hides_tokens():
    graph, params = made("Ti/4", **SMALL, image_size=8, classes=5)
    model, x = jax.jit(lambda x, mask=None: merge(graph, params)(x, mask=mask)), images(2, 8, 8, 3)
    visible = jnp.array([True, True, False, True, True])  # not the patch of the first row, second column
    changed = x.at[:, :4, 4:].set(7.0)
    np.testing.assert_allclose(model(x, mask=visible)[0], model(changed, mask=visible)[0], atol=1e-5)
    assert np.abs(model(x)[0] - model(changed)[0]).max() > 1e-3


def test_without_classes_the_result_is_the_feature():
    result, out = run(*made("Ti/4", **SMALL, image_size=8, classes=0, pool="map"), images(2, 8, 8, 3))
    np.testing.assert_array_equal(result, out["pooled"])


def test_bfloat16_computes_in_bfloat16_with_float32_parameters_and_logits():
    changes = {**SMALL, "image_size": 8, "classes": 5}
    graph, params = made("Ti/4", **changes)
    half_graph, half_params = split(vit.create("Ti/4", **changes, dtype="bfloat16"))
    assert all(x.dtype == jnp.float32 for x in half_params.values())
    x = images(2, 8, 8, 3)
    full, _ = run(graph, params, x)
    half, out = run(half_graph, params, x)
    assert out["tokens"].dtype == jnp.bfloat16
    assert half.dtype == jnp.float32
    assert 0 < np.abs(full - half).max() < 0.1 * np.abs(full).max()


def test_randomness_belongs_to_the_example():
    graph, params = made("Ti/4", **SMALL, image_size=8, classes=0, dropout=0.2, drop_path=0.3)
    model = jax.jit(lambda x, keys=None: merge(graph, params)(x, keys=keys))
    x, keys = images(4, 8, 8, 3), jax.random.split(jax.random.key(1), 4)
    together, _ = model(x, keys=keys)
    alone, _ = model(x[2:3], keys=keys[2:3])
    np.testing.assert_allclose(together[2:3], alone, rtol=1e-6, atol=1e-6)
    assert np.abs(together - model(x)[0]).max() > 1e-2
    np.testing.assert_array_equal(model(x)[0], model(x)[0])


def dot_and_convolution_flops(function, *args):
    """Counted in the program that JAX traces, equation by equation."""

    def count(jaxpr):
        total = 0
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                (contract, _), _ = eqn.params["dimension_numbers"]
                shape = eqn.invars[0].aval.shape
                total += 2 * eqn.outvars[0].aval.size * math.prod(shape[i] for i in contract)
            elif eqn.primitive.name == "conv_general_dilated":
                kernel = eqn.invars[1].aval.shape  # (h, w, in, out)
                total += 2 * eqn.outvars[0].aval.size * math.prod(kernel[:3])
            for value in eqn.params.values():
                if hasattr(value, "jaxpr"):
                    total += count(value.jaxpr)
        return total

    return count(jax.make_jaxpr(function)(*args).jaxpr)


@pytest.mark.parametrize("stem", ["patch", "conv"])
@pytest.mark.parametrize("pool", ["token", "mean", "map"])
def test_flops_are_those_of_the_traced_program(stem, pool):
    changes = {**SMALL, "stem": stem, "pool": pool}
    graph, params = made("Ti/4", **changes, image_size=(8, 16), classes=5)
    traced = dot_and_convolution_flops(lambda x: merge(graph, params)(x)[0], jnp.zeros((1, 8, 16, 3)))
    assert flops(ViTConfig.variant("Ti/4", **changes), image_size=(8, 16), channels=3, classes=5) == traced


@pytest.mark.parametrize(
    "changes", [{}, {"stem": "conv", "pool": "map", "rope": "dinov3", "drop_path": 0.2}], ids=["", "parts"]
)
def test_a_block_computed_twice_is_the_same_block(changes):
    (plain, params), (remat, _) = (
        made("Ti/4", **SMALL, **changes, image_size=8, classes=5, dropout=0.1, remat=r) for r in (False, True)
    )
    x, keys = images(2, 8, 12, 3), jax.random.split(jax.random.key(1), 2)

    def results(graph):
        loss = jax.value_and_grad(lambda params: jnp.sum(jnp.sin(merge(graph, params)(x, keys=keys)[0])))
        return jax.jit(lambda params: (loss(params), merge(graph, params)(x, attention=True)))(params)

    one, other = results(plain), results(remat)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), one, other)


def test_blocks_computed_twice_keep_less():
    """As XLA plans it, of eight blocks: `jax.checkpoint` alone saves nothing on a CPU."""

    def planned(remat):
        graph, params = made("Ti/4", width=48, depth=8, heads=4, mlp=192, image_size=32, classes=5, remat=remat)
        loss = lambda params: jnp.sum(merge(graph, params)(jnp.ones((8, 32, 32, 3)))[0] ** 2)  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes

    assert planned(True) < 0.6 * planned(False)


@pytest.mark.parametrize(("activation", "remat"), [("gelu_tanh", True), ("gelu", False)])  # biases and scales alone; erf too
def test_biases_scales_and_erf_are_not_kept_and_change_nothing(activation, remat, monkeypatch):
    """On one CPU: XLA makes each as large as the tokens, and would hold those of all blocks."""
    how = {"activation": activation, "remat": remat}
    graph, params = made("Ti/4", width=48, depth=8, heads=4, mlp=192, image_size=32, classes=5, **how)

    def planned(devices):
        monkeypatch.setattr(jax, "device_count", lambda: devices)
        loss = lambda params: jnp.sum(merge(graph, params)(images(8, 32, 32, 3))[0] ** 2)  # noqa: E731
        program = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
        return program.memory_analysis().temp_size_in_bytes, program(params)

    (less, one), (more, other) = planned(1), planned(2)
    assert less < more  # by much without the flags of tests/conftest.py: tests/heavy/test_memory.py
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), one, other)


def test_attention_pooling_tells_where_it_looks():
    graph, params = made("Ti/4", **SMALL, image_size=8, classes=0, pool="map")
    model, x = merge(graph, params), images(2, 8, 12, 3)
    result, out = run(graph, params, x, attention=True)
    weights = np.asarray(out["pool_attention"])
    assert weights.shape == (2, 3, 6)
    # The value of each head is the tokens' mean under these weights: from there on the pooled vector follows.
    values = np.asarray(model.attn_pool.v(out["patches"].reshape(2, 6, 24))).reshape(2, 6, 3, 8)
    y = model.attn_pool.proj(jnp.asarray(np.einsum("bhn,bnhd->bhd", weights, values).reshape(2, 1, 24)))
    np.testing.assert_allclose((y + model.attn_pool.mlp(model.attn_pool.norm(y)))[:, 0], result, rtol=1e-4, atol=1e-5)
    assert "pool_attention" not in jax.eval_shape(model, x)[1]


PARTS = {
    "registers": {"registers": 4, "layer_scale": 0.1},
    "patches positioned": {"registers": 2, "positioned": "patches", "pool": "mean", "class_token": True},
    "token and mean": {"pool": "token_mean", "registers": 1, "positioned": "class"},
    "distilled": {"registers": 1, "distilled": True},
    "dinov3": {"position": "none", "rope": "dinov3", "activation": "swiglu", "qkv_bias": "qv", "registers": 4},
    "eva": {"rope": "eva", "activation": "swiglu", "inner_norm": "both", "qk_norm": True, "final_norm": "pooled"},
    "clip": {"pre_norm": True, "patch_bias": False, "activation": "quick_gelu", "pre_logits": 8},
}


@pytest.mark.parametrize("name", PARTS)
def test_the_parts_of_pretrained_families_keep_what_the_outputs_mean(name):
    # A model of any parts, at a size it isn't made for: shapes, flops, a gradient for every parameter.
    graph, params = made("Ti/16", **{**SMALL, "heads": 2, "width": 24}, classes=5, image_size=(32, 48), **PARTS[name])
    x = images(2, 48, 16, 3)

    def loss(params):
        logits, out = merge(graph, params)(x, attention=True)
        return (logits**2).sum(), (logits, out)

    (_, (logits, out)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    prefix = out["tokens"].shape[1] - 3
    assert prefix == PARTS[name].get("registers", 0) + 1
    assert out["patches"].shape == (2, 3, 1, 24)
    assert logits.shape == (2, 5)
    assert out["attention"][0].shape == (2, 2, prefix + 3, prefix + 3)
    np.testing.assert_array_equal(out["patches"].reshape(2, 3, 24), out["tokens"][:, prefix:])
    assert out["pooled"].shape == (2, 48 if name == "token and mean" else 24)
    assert {path for path, g in gradient.items() if not np.abs(g).max() > 0} == set()


@pytest.mark.parametrize("name", PARTS)
def test_flops_of_these_parts_are_those_of_the_traced_program(name):
    config = ViTConfig(**{**SMALL, "heads": 2}, patch=8, **PARTS[name])
    shape = {"image_size": (16, 24), "channels": 3, "classes": 5}
    graph, params = random_params(lambda: ViT(config, **shape, rngs=nnx.Rngs(0)))
    assert flops(config, **shape) == dot_and_convolution_flops(lambda x: merge(graph, params)(x)[0], images(1, 16, 24, 3))
