"""EoMT: what masked attention hides, how it is annealed away, what stands where. Parity is in tests/parity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit.config import EomtHead, ViTConfig
from vit.errors import UserError
from vit.models.eomt import Depthwise, Eomt, annealed, eomt_flops
from vit.models.layers import fold_in
from vit.models.vit import ViT, split

CONFIG = ViTConfig(patch=4, width=16, depth=3, heads=2, mlp=24, registers=2, positioned="patches")
HEAD = EomtHead(queries=5, blocks=2, upscale=1)


@functools.cache
def build(config=CONFIG, head=HEAD):
    return Eomt(config, head, image_size=(16, 24), channels=3, classes=4, rngs=nnx.Rngs(0))


def images(B=2, H=16, W=24):
    return jax.random.normal(jax.random.key(1), (B, H, W, 3))


@functools.cache
def compiled(model, **more):
    """As a whole, which is quicker than piece by piece, and once for all tests."""
    return jax.jit(lambda x, arrays: model(x, **arrays, **more))


def forward(model, x, **more):
    arrays = {name: given for name, given in more.items() if isinstance(given, jax.Array)}
    return compiled(model, **{name: given for name, given in more.items() if name not in arrays})(x, arrays)


def keys(B=2):
    return jax.random.split(jax.random.key(2), B)


def test_what_comes_out():
    model = build()
    result, out = forward(model, images(), attention=True)
    assert {name: x.shape for name, x in result.items()} == {"masks": (2, 5, 8, 12), "classes": (2, 5, 5)}
    assert {x.dtype for x in result.values()} == {jnp.dtype("float32")}
    assert [x.shape for x in out["blocks"]] == [(2, 27, 16)] * 3
    shapes = {name: out[name].shape for name in ("embedded", "tokens", "patches", "queries", "pooled")}
    wanted = {"embedded": (2, 27, 16), "tokens": (2, 27, 16), "patches": (2, 4, 6, 16)}
    assert shapes == wanted | {"queries": (2, 5, 16), "pooled": (2, 16)}
    assert [x.shape[-1] for x in out["attention"]] == [27, 32, 32]
    assert out["layers"] == []
    assert forward(model, images(1, 8, 40))[0]["masks"].shape == (1, 5, 4, 20)  # another size than that of training
    with pytest.raises(UserError, match="patches of 4x4 don't tile an image of 16x25"):
        model(images(1, 16, 25))


def test_all_beside_the_backbone_is_below_head():
    _, ours = split(build())
    _, plain = split(ViT(CONFIG, image_size=(16, 24), channels=3, classes=0, rngs=nnx.Rngs(0)))
    assert {path for path in ours if not path.startswith("head/")} == set(plain)
    assert {path for path in ours if path.startswith("head/")} == {
        *("head/queries", "head/upscale/0/up/kernel", "head/upscale/0/bias", "head/upscale/0/depthwise/kernel"),
        *(f"head/upscale/0/norm/{name}" for name in ("scale", "bias")),
        *(f"head/{layer}/{name}" for layer in ("mask/fc1", "mask/fc2", "mask/fc3", "classify") for name in ("kernel", "bias")),
    }


def test_blocks_before_queries_join_are_the_backbones():
    model = build()
    _, out = forward(model, images())
    x = jax.jit(lambda x: model.blocks[0](model.embed(x))[0])(images())
    np.testing.assert_allclose(out["blocks"][0], x, rtol=1e-5, atol=1e-6)


def test_masked_queries_see_their_masks_alone():
    model = build()
    _, out = forward(model, images(), keys=keys(), anneal=jnp.ones(2), attention=True)
    assert len(out["layers"]) == 2
    for layer, weights in zip(out["layers"], out["attention"][1:], strict=True):
        masks = layer["masks"].reshape(2, 5, 4, 2, 6, 2).mean((3, 5)).reshape(2, 1, 5, 24)  # bilinear, to half the sides
        queries = weights[:, :, :5]
        assert ((queries[..., -24:] > 0) == (masks > 0)).all()
        assert (queries[..., :-24] > 0).all()  # queries, class token and registers
        assert (weights[:, :, 5:] > 0).all()  # all other tokens see everything
        assert 0.1 < (masks > 0).mean() < 0.9


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_queries_is_masked_by_each_examples_own_key(share):
    model = build(head=EomtHead(queries=400, blocks=1, upscale=0))
    run = jax.jit(lambda share, keys: model(images(), keys=keys, anneal=share, attention=True)[1])
    out = run(jnp.full(1, share), keys())
    hidden = (out["attention"][-1][:, 0, :400, -24:] == 0).any(axis=-1)
    could = ~(out["layers"][0]["masks"] > 0).all(axis=(2, 3))
    assert (hidden <= could).all()
    np.testing.assert_allclose(hidden.sum(axis=1) / could.sum(axis=1), share, atol=0.1)
    again = run(jnp.full(1, share), keys()[::-1])
    assert bool((hidden == (again["attention"][-1][:, 0, :400, -24:] == 0).any(axis=-1)).all()) == (share != 0.3)


def test_without_masks_evaluation_is_what_a_share_of_zero_gives():
    model = build()
    plain, _ = forward(model, images())
    annealed_away, out = forward(model, images(), anneal=jnp.zeros(2))
    assert len(out["layers"]) == 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, annealed_away)
    masked, _ = forward(model, images(), anneal=1.0)
    assert jnp.abs(masked["masks"] - plain["masks"]).max() > 1e-3


@pytest.mark.parametrize("kind", ["boolean", "additive"])
@pytest.mark.parametrize("anneal", [0.0, 1.0])
def test_a_mask_of_attention_holds_for_the_tokens_and_not_for_queries(kind, anneal):
    hidden = jnp.zeros((1, 1, 27, 27), bool).at[..., 20].set(True)  # nobody sees this patch
    mask = ~hidden if kind == "boolean" else jnp.where(hidden, -jnp.inf, 0.0)
    _, out = forward(build(), images(), mask=mask, attention=True, anneal=anneal)
    for weights, Q in zip(out["attention"], (0, 5, 5), strict=True):
        assert not weights[:, :, Q:, Q + 20].any()
        assert (weights[:, :, Q:, :Q] > 0).all()
    if not anneal:
        assert (out["attention"][-1][:, :, :5] > 0).all()


def test_rotary_positions_turn_patches_and_no_queries():
    config = ViTConfig(patch=4, width=16, depth=2, heads=2, mlp=24, position="none", rope="dinov3")
    turn = build(config).rotation((4, 6), before=5)
    q = jax.random.normal(jax.random.key(0), (1, 2, 30, 8))
    np.testing.assert_array_equal(turn(q)[:, :, :6], q[:, :, :6])
    np.testing.assert_allclose(turn(q)[:, :, 6:], build(config).rotation((4, 6))(q[:, :, 5:])[:, :, 1:], rtol=1e-6)
    forward(build(config), images())


def test_masks_fall_block_after_block():
    every = np.array([annealed(step / 600, 4) for step in range(601)])
    np.testing.assert_array_equal(every[:101], 1)
    np.testing.assert_array_equal(every[500:], 0)
    assert (np.diff(every, axis=0) <= 0).all()
    for block in range(4):
        np.testing.assert_array_equal(every[: 100 * (block + 1) + 1, block], 1)
        np.testing.assert_allclose(every[100 * block + 125, block], 0.75**0.9, rtol=1e-5)
        np.testing.assert_array_equal(every[100 * (block + 2) :, block], 0)


def test_the_depthwise_convolution_is_xlas():
    conv = Depthwise(6, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 5, 7, 6))
    form = ("NHWC", "HWIO", "NHWC")
    wanted = jax.lax.conv_general_dilated(
        x, conv.kernel[...][:, :, None], (1, 1), "SAME", dimension_numbers=form, feature_group_count=6
    )
    np.testing.assert_allclose(conv(x), wanted, rtol=1e-5, atol=1e-6)


def test_randomness_is_each_examples_own():
    config = ViTConfig(patch=4, width=16, depth=3, heads=2, mlp=24, dropout=0.2, drop_path=0.2)
    model, share = build(config), jnp.full(2, 0.5)
    both = forward(model, images(), keys=keys(), anneal=share)[0]
    second = forward(model, images()[1:], keys=keys()[1:], anneal=share)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1:], b, rtol=1e-4, atol=1e-5), both, second)
    assert jnp.abs(forward(model, images(), keys=fold_in(keys(), 1), anneal=share)[0]["masks"] - both["masks"]).max() > 1e-3


def test_operations_are_those_of_xla():
    model = build()
    wanted = jax.jit(lambda x: model(x)[0]).lower(jax.ShapeDtypeStruct((1, 16, 24, 3), jnp.float32)).cost_analysis()["flops"]
    got = eomt_flops(CONFIG, HEAD, image_size=(16, 24), channels=3, classes=4)
    assert 0.85 * wanted < got < wanted  # XLA counts norms, softmax and activations too
