"""A ViT with a dense head for detection: at every place of a pyramid of its last tokens a score for each class and a box.

Glossary for shapes beside that of `vit.models.layers`: N places, over all sizes of the pyramid, K classes.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vit.config import DenseHead, ViTConfig
from vit.models.layers import Keys, LayerNorm, Linear, Mask, PatchEmbed, gelu, xavier
from vit.models.segmenter import Conv
from vit.models.vit import flops, patch_grid
from vit.models.windows import Windowed

RARE = 0.01  # a score before anything is learnt: most places have no object (arXiv 1708.02002)
FAR = 6.0  # e to this times the stride is the largest distance from a place to a side


class Detector(Windowed):
    """The backbone as it is, and a head below `head/`.

    Args:
      config: the backbone's sizes and choices.
      head: the pyramid's.
      window, global_blocks: see `vit.models.windows.Windowed`.
      image_size: (H, W) in pixels that learned positions are made for; any other size works at call time.
      channels: of the images.
      classes: K.
    """

    def __init__(
        self,
        config: ViTConfig,
        head: DenseHead,
        *,
        window: int = 0,
        global_blocks: int = 4,
        image_size: tuple[int, int],
        channels: int,
        classes: int,
        rngs: nnx.Rngs,
    ):
        shape: Any = {"image_size": image_size, "channels": channels, "rngs": rngs}
        super().__init__(config, window=window, global_blocks=global_blocks, **shape)
        self.head = Pyramid(config, head, channels, classes, dtype=jnp.dtype(config.dtype), rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "B H W C"],
        *,
        keys: Keys | None = None,
        mask: Mask | None = None,
        attention: bool = False,
    ) -> tuple[Any, dict[str, Any]]:
        """Float32 `classes` (B, N, K), logits, and `boxes` (B, N, 4), (y0, x0, y1, x1) in [0, 1], at `places(...)`.

        And all that the backbone gives; arguments as `ViT` has them.
        """
        _, out = super().__call__(images, keys=keys, mask=mask, attention=attention)
        classes, distances = self.head(images, out["patches"])
        size = images.shape[1:3]
        where, reach = places(size, self.head.strides)
        sides = jnp.exp(jnp.clip(distances.astype(jnp.float32), -FAR, FAR)) * reach[:, None]
        boxes = jnp.concatenate([where - sides[..., :2], where + sides[..., 2:]], axis=-1) / np.tile(size, 2)
        return {"boxes": boxes, "classes": classes.astype(jnp.float32)}, out


class Pyramid(nnx.Module):
    """ViTDet's simple feature pyramid (arXiv 2203.16527) and what makes scores and boxes of it, the same at each size.

    The last tokens are enlarged by matrices and shrunk by maxima; to each size the image's own pixels are added, projected
    patch by patch, so that edges needn't go through the tokens.
    """

    def __init__(self, config: ViTConfig, head: DenseHead, channels: int, classes: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        shared: Any = {"dtype": dtype, "rngs": rngs}
        self.patch, self.strides, C = config.patch, head.strides, head.width
        ups = [max(1, config.patch // stride) for stride in head.strides]
        self.norm = LayerNorm(config.width, **shared)
        self.enlarge = nnx.List([Linear(config.width, up**2 * C, kernel_init=xavier, **shared) for up in ups])
        self.pixels = nnx.List([PatchEmbed(stride, channels, C, **shared) for stride in head.strides])
        self.smooth = nnx.List([Conv(C, C, **shared) for _ in head.strides])
        self.score_norms, self.box_norms = (nnx.List([LayerNorm(C, **shared) for _ in range(head.convs + 1)]) for _ in range(2))
        self.score_convs, self.box_convs = (nnx.List([Conv(C, C, **shared) for _ in range(head.convs)]) for _ in range(2))
        rare = nnx.initializers.constant(-float(np.log(1 / RARE - 1)))
        zeros: Any = {"kernel_init": nnx.initializers.zeros, "dtype": jnp.float32, "rngs": rngs}
        self.classify, self.locate = Linear(C, classes, bias_init=rare, **zeros), Linear(C, 4, **zeros)

    def __call__(
        self, images: Float[Array, "B H W C"], patches: Float[Array, "B h w D"]
    ) -> tuple[Float[Array, "B N K"], Float[Array, "B N 4"]]:
        """Logits of the classes, and logarithms of the distances to a box's top, left, bottom and right, in strides."""
        levels = zip(self.strides, self.enlarge, self.pixels, self.smooth, strict=True)
        found = [self._answers(self._level(images, self.norm(patches), *level)) for level in levels]
        scores, boxes = ([x.reshape(len(images), -1, x.shape[-1]) for x in parts] for parts in zip(*found, strict=True))
        return jnp.concatenate(scores, axis=1), jnp.concatenate(boxes, axis=1)

    def _level(self, images: Array, x: Array, stride: int, enlarge: Linear, pixels: PatchEmbed, smooth: Conv) -> Array:
        """The features of one size."""
        B, h, w, _ = x.shape
        x, up = enlarge(x), max(1, self.patch // stride)
        x = x.reshape(B, h, w, up, up, -1).swapaxes(2, 3).reshape(B, h * up, w * up, -1)
        if stride > self.patch:
            n = stride // self.patch
            x = jnp.pad(x, ((0, 0), (0, -h % n), (0, -w % n), (0, 0)), constant_values=-jnp.inf)
            x = x.reshape(B, x.shape[1] // n, n, x.shape[2] // n, n, -1).max(axis=(2, 4))
        H, W = (-side % stride for side in images.shape[1:3])
        x = x + pixels(jnp.pad(images, ((0, 0), (0, H), (0, W), (0, 0))).astype(x.dtype))
        return x + smooth(gelu(x))

    def _answers(self, x: Array) -> tuple[Array, Array]:
        """Scores and distances at each place of one size."""
        ways = (
            (self.score_convs, self.score_norms, self.classify),
            (self.box_convs, self.box_norms, self.locate),
        )
        found = []
        for convs, norms, last in ways:
            y = x
            for conv, norm in zip(convs, norms, strict=False):
                y = y + conv(gelu(norm(y)))
            found.append(last(gelu(norms[-1](y))))
        return found[0], found[1]


def places(size: Sequence[int], strides: tuple[int, ...]) -> tuple[Float[np.ndarray, "N 2"], Float[np.ndarray, "N"]]:
    """Centres (y, x) in pixels of all places over an image of this height and width, row by row, and the stride of each."""
    centres, reach = [], []
    for stride in strides:
        y, x = (stride * (np.arange(-(-side // stride)) + 0.5) for side in size)
        grid = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)
        centres.append(grid)
        reach.append(np.full(len(grid), stride))
    return np.concatenate(centres).astype(np.float32), np.concatenate(reach).astype(np.float32)


def detector_flops(config: ViTConfig, head: DenseHead, *, image_size: tuple[int, int], channels: int, classes: int) -> int:
    """Operations of the matmuls and convolutions of one image's forward pass (a multiply-add counts as two)."""
    total, (h, w), C = (
        flops(config, image_size=image_size, channels=channels, classes=0),
        patch_grid(config, *image_size),
        head.width,
    )
    for stride in head.strides:
        up = max(1, config.patch // stride)
        H, W = (-(-side // stride) for side in image_size)
        each = 9 * C * C * (1 + 2 * head.convs) + stride**2 * channels * C + C * (classes + 4)
        total += 2 * (h * w * config.width * up**2 * C + H * W * each)
    return total
