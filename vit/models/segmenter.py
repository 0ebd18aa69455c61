"""A ViT with a head that answers for every place: logits on a grid, upsampled wherever they are used."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vit.config import ConvHead, LinearHead, ViTConfig
from vit.models.layers import Keys, LayerNorm, Linear, Mask, PatchEmbed, gelu, xavier
from vit.models.vit import ViT, flops, patch_grid


class Segmenter(ViT):
    """The backbone as it is, and a head below `head/`.

    Args:
      config: the backbone's sizes and choices.
      head: which head.
      image_size: (H, W) in pixels that learned positions are made for; any other size works at call time.
      channels: of the images.
      classes: K, without those pixels that are no class.
    """

    def __init__(
        self,
        config: ViTConfig,
        head: LinearHead | ConvHead,
        *,
        image_size: tuple[int, int],
        channels: int,
        classes: int,
        rngs: nnx.Rngs,
    ):
        super().__init__(config, image_size=image_size, channels=channels, classes=0, rngs=rngs)
        if isinstance(head, LinearHead):
            self.head = LinearDecoder(config.width, classes, rngs=rngs)
        else:
            self.head = ConvDecoder(config, head, channels, classes, dtype=jnp.dtype(config.dtype), rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "B H W C"],
        *,
        keys: Keys | None = None,
        mask: Mask | None = None,
        attention: bool = False,
    ) -> tuple[Float[Array, "B h w K"], dict[str, Any]]:
        """Float32 logits on a grid of places, and all that the backbone gives; arguments as `ViT` has them."""
        _, out = super().__call__(images, keys=keys, mask=mask, attention=attention)
        return self.head(images, out).astype(jnp.float32), out


class LinearDecoder(nnx.Module):
    """A linear map of each patch token: DINOv2's evaluation of its features (arXiv 2304.07193, section 7.4)."""

    def __init__(self, width: int, classes: int, *, rngs: nnx.Rngs):
        self.classify = Linear(width, classes, kernel_init=nnx.initializers.zeros, dtype=jnp.float32, rngs=rngs)

    def __call__(self, images: Float[Array, "B H W C"], out: dict[str, Any]) -> Float[Array, "B h w K"]:
        """Logits of each patch."""
        return self.classify(out["patches"])


class ConvDecoder(nnx.Module):
    """Tokens of several blocks, each normalised and projected, summed; then size after size up to the stride.

    At each size: the pixels themselves, projected patch by patch (so that fine detail needn't go through the tokens), then a
    residual 3x3 convolution.
    """

    def __init__(self, config: ViTConfig, head: ConvHead, channels: int, classes: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        shared: Any = {"dtype": dtype, "rngs": rngs}
        self.levels, sizes, C = levels(config.depth, head.levels), strides(config.patch, head.stride), head.width
        self.norms = nnx.List([LayerNorm(config.width, **shared) for _ in self.levels])
        self.projections = nnx.List([Linear(config.width, C, kernel_init=xavier, **shared) for _ in self.levels])
        self.pixels = nnx.List([PatchEmbed(stride, channels, C, **shared) for stride in sizes])
        self.conv_norms = nnx.List([LayerNorm(C, **shared) for _ in sizes])
        self.convs = nnx.List([Conv(C, C, **shared) for _ in sizes])
        self.norm, self.fine = LayerNorm(C, **shared), head.stride if head.fine == "subpixel" else 1
        self.classify = Linear(C, self.fine**2 * classes, kernel_init=nnx.initializers.zeros, dtype=jnp.float32, rngs=rngs)

    def __call__(self, images: Float[Array, "B H W C"], out: dict[str, Any]) -> Float[Array, "B h w K"]:
        """Logits at every `stride` pixels, or of every pixel."""
        grid = out["patches"].shape[1:3]
        x = jnp.zeros((), self.projections[0].dtype)
        for i, norm, project in zip(self.levels, self.norms, self.projections, strict=True):
            tokens = out["blocks"][i][:, -grid[0] * grid[1] :]
            x = x + project(norm(tokens))
        x = x.reshape(len(images), *grid, -1)
        for i, (pixels, norm, conv) in enumerate(zip(self.pixels, self.conv_norms, self.convs, strict=True)):
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2) if i else x
            x = x + pixels(images.astype(x.dtype))
            x = x + conv(gelu(norm(x)))
        x = self.classify(gelu(self.norm(x)))
        B, h, w, s = *x.shape[:3], self.fine
        return x.reshape(B, h, w, s, s, -1).swapaxes(2, 3).reshape(B, h * s, w * s, -1)


class Conv(nnx.Module):
    """A 3x3 convolution as one product of matrices: XLA's CPU backward of its own is up to three times slower."""

    def __init__(self, inputs: int, outputs: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.linear = Linear(9 * inputs, outputs, kernel_init=xavier, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w E"]:
        """Zeros stand around the image."""
        h, w = x.shape[1:3]
        around = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return self.linear(jnp.concatenate([around[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=-1))


def levels(depth: int, count: int) -> list[int]:
    """`count` of the blocks, evenly spread, the last among them: 12 blocks and 4 levels give 2, 5, 8 and 11."""
    return sorted({int(i) for i in np.ceil(np.linspace(0, depth, min(count, depth) + 1))[1:] - 1})


def strides(patch: int, stride: int) -> list[int]:
    """The pixels from one place to the next at each size of a pyramid, from the patch down: 16 and 4 give 16, 8 and 4."""
    return [patch >> i for i in range((patch // stride).bit_length())]


def segmenter_flops(
    config: ViTConfig, head: LinearHead | ConvHead, *, image_size: tuple[int, int], channels: int, classes: int
) -> int:
    """Operations of the matmuls and convolutions of one image's forward pass (a multiply-add counts as two)."""
    total, (H, W) = flops(config, image_size=image_size, channels=channels, classes=0), image_size
    h, w = patch_grid(config, H, W)
    if isinstance(head, LinearHead):
        return total + 2 * h * w * config.width * classes
    C = head.width
    total += 2 * h * w * config.width * C * len(levels(config.depth, head.levels))
    for stride in strides(config.patch, head.stride):
        total += 2 * (H // stride) * (W // stride) * (9 * C * C + stride**2 * channels * C)
    fine = head.stride**2 if head.fine == "subpixel" else 1
    return total + 2 * (H // head.stride) * (W // head.stride) * C * fine * classes
