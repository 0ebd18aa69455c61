"""YOLOS: what comes out, what stands where. Parity is in tests/parity."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit.config import ViTConfig, YolosHead
from vit.errors import UserError
from vit.models.vit import ViT, split
from vit.models.yolos import Yolos, yolos_flops

CONFIG = ViTConfig(patch=4, width=16, depth=2, heads=2, mlp=24, registers=2, positioned="patches")
HEAD = YolosHead(queries=5, middle=True)
SHAPE = {"image_size": (16, 24), "channels": 3, "classes": 4}


def build(config=CONFIG, head=HEAD):
    return Yolos(config, head, **SHAPE, rngs=nnx.Rngs(0))


def images(B=2, H=16, W=24):
    return jax.random.normal(jax.random.key(1), (B, H, W, 3))


@functools.cache
def hiding():
    """A patch that nobody sees."""
    mask = jnp.ones((1, 1, 27, 27), bool).at[..., 20].set(False)
    return jax.jit(lambda x: build()(x, attention=True, mask=mask))(images())


def test_what_comes_out():
    result, out = hiding()
    assert {name: x.shape for name, x in result.items()} == {"boxes": (2, 5, 4), "classes": (2, 5, 5)}
    assert {x.dtype for x in result.values()} == {jnp.dtype("float32")}
    assert (result["boxes"][..., 2:] > result["boxes"][..., :2]).all()
    assert [x.shape for x in out["blocks"]] == [(2, 27, 16)] * 2
    shapes = {name: out[name].shape for name in ("embedded", "tokens", "patches", "queries", "pooled")}
    wanted = {"embedded": (2, 27, 16), "tokens": (2, 27, 16), "patches": (2, 4, 6, 16)}
    assert shapes == wanted | {"queries": (2, 5, 16), "pooled": (2, 16)}
    assert out["layers"] == []
    with pytest.raises(UserError, match="patches of 4x4 don't tile an image of 16x25"):
        build()(images(1, 16, 25))


def test_a_mask_of_attention_holds_for_the_tokens_and_not_for_those_of_detection():
    for weights in hiding()[1]["attention"]:
        assert weights.shape == (2, 2, 32, 32)
        assert not weights[:, :, 5:, 25].any()
        assert (weights[:, :, :5] > 0).all()
        assert (weights[..., :5] > 0).all()


def test_all_beside_the_backbone_is_below_head():
    _, ours = split(build())
    _, plain = split(ViT(CONFIG, **{**SHAPE, "classes": 0}, rngs=nnx.Rngs(0)))
    assert {path for path in ours if not path.startswith("head/")} == set(plain)
    chains = {f"head/{name}/layers/{i}/{part}" for name in ("classify", "box") for i in range(3) for part in ("kernel", "bias")}
    assert {path for path in ours if path.startswith("head/")} == {"head/tokens", "head/middle", *chains}
    assert ours["head/middle"].shape == (1, 32, 16)
    assert "head/middle" not in split(build(head=YolosHead(queries=5)))[1]


def test_positions_between_the_blocks_are_resampled_for_patches_alone():
    model = build()
    same, other = model._middle((4, 6)), model._middle((2, 9))
    np.testing.assert_array_equal(same, model.head.middle[...])
    assert other.shape == (1, 8 + 18, 16)
    np.testing.assert_array_equal(other[:, :8], same[:, :8])


def test_rotary_positions_and_other_sizes():
    config = ViTConfig(patch=4, width=16, depth=2, heads=2, mlp=24, position="none", rope="dinov3", dtype="bfloat16")
    result, _ = jax.jit(build(config))(images(1, 8, 40))
    assert {name: (x.shape, x.dtype.name) for name, x in result.items()} == {
        "boxes": ((1, 5, 4), "float32"),
        "classes": ((1, 5, 5), "float32"),
    }


def test_randomness_is_each_examples_own():
    model, keys = build(dataclasses.replace(CONFIG, dropout=0.2)), jax.random.split(jax.random.key(2), 2)
    run = jax.jit(lambda x, keys: model(x, keys=keys)[0]["boxes"])
    both, twins, turned = run(images(), keys), run(images()[jnp.array([0, 0])], keys), run(images(), keys[::-1])
    np.testing.assert_allclose(twins[0], both[0], rtol=1e-4, atol=1e-5)
    assert jnp.abs(turned - both).max() > 1e-4


def test_operations_are_those_of_xla():
    model = build()
    wanted = jax.jit(lambda x: model(x)[0]).lower(jax.ShapeDtypeStruct((1, 16, 24, 3), jnp.float32)).cost_analysis()["flops"]
    got = yolos_flops(CONFIG, HEAD, **SHAPE)
    assert 0.85 * wanted < got < wanted  # XLA counts norms, softmax and activations too
