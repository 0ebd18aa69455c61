"""The heads on the backbone: shapes, what they read, and that the backbone is the same one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.test_vit import dot_and_convolution_flops, images, random_params, run
from vit.config import ConvHead, LinearHead, ViTConfig
from vit.models.segmenter import Conv, Segmenter, levels, segmenter_flops, strides
from vit.models.vit import ViT, merge, split

SMALL = ViTConfig(patch=8, width=16, depth=3, heads=2, mlp=32, pool="mean")
HEADS = [
    LinearHead(),
    ConvHead(width=8, levels=2, stride=2),
    ConvHead(width=8, levels=3, stride=4, fine="subpixel"),
    ConvHead(width=8, levels=9, stride=8),
]


def made(head, config=SMALL, size=(32, 48), classes=5):
    return Segmenter(config, head, image_size=size, channels=3, classes=classes, rngs=nnx.Rngs(0))


def noisy(head, config=SMALL):
    """Structure and random parameters."""
    return random_params(lambda: made(head, config))


@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("size", [(32, 48), (16, 64)])
def test_logits_of_any_size(head, size):
    logits, out = run(*noisy(head), images(2, *size, 3))
    stride = 8 if isinstance(head, LinearHead) else 1 if head.fine == "subpixel" else head.stride
    assert logits.shape == (2, size[0] // stride, size[1] // stride, 5)
    assert logits.dtype == jnp.float32
    assert len(out["blocks"]) == 3


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_the_backbone_is_the_plain_one(head):
    graph, params = noisy(head)
    plain, own = random_params(lambda: ViT(SMALL, image_size=(32, 48), channels=3, classes=0, rngs=nnx.Rngs(1)))
    same = {path: x for path, x in params.items() if not path.startswith("head/")}
    assert own.keys() == same.keys()

    @jax.jit
    def both(params, same, x):
        return merge(plain, same)(x)[1]["patches"], merge(graph, params)(x)[1]["patches"]

    np.testing.assert_array_equal(*both(params, same, images(2, 32, 48, 3)))


@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_flops_are_those_of_the_traced_program(head, stem):
    import dataclasses

    config = dataclasses.replace(SMALL, stem=stem)
    graph, params = noisy(head, config)
    said = segmenter_flops(config, head, image_size=(32, 48), channels=3, classes=5)
    assert said == dot_and_convolution_flops(lambda x: merge(graph, params)(x)[0], jnp.zeros((1, 32, 48, 3)))


def test_a_logit_of_the_linear_head_is_of_its_patch():
    graph, params = noisy(LinearHead())
    logits, out = run(graph, params, images(1, 32, 48, 3))
    kernel, bias = (params[f"head/classify/{name}"] for name in ("kernel", "bias"))
    np.testing.assert_allclose(logits[0, 2, 3], out["patches"][0, 2, 3] @ kernel + bias, atol=1e-5)


def test_subpixels_lie_where_they_belong():
    """With all else zero, the classifier's bias is the picture of one place."""
    graph, params = noisy(ConvHead(width=8, levels=1, stride=4, fine="subpixel"))
    bias = np.arange(4 * 4 * 5, dtype=np.float32)
    params = {path: jnp.zeros_like(x) for path, x in params.items()} | {"head/classify/bias": jnp.asarray(bias)}
    logits = np.asarray(run(graph, params, jnp.zeros((1, 32, 48, 3)))[0])[0]
    np.testing.assert_array_equal(logits, np.tile(bias.reshape(4, 4, 5), (8, 12, 1)))


def test_the_convolution_is_xla_s():
    conv = Conv(3, 4, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 7, 9, 3))
    kernel = split(conv)[1]["linear/kernel"].reshape(3, 3, 3, 4)
    wanted = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(conv(x), wanted, atol=1e-5)


def test_which_blocks_and_which_sizes():
    assert levels(12, 4) == [2, 5, 8, 11]
    assert levels(3, 9) == [0, 1, 2]
    assert levels(5, 1) == [4]
    assert strides(16, 4) == [16, 8, 4]
    assert strides(14, 7) == [14, 7]
    assert strides(8, 8) == [8]
