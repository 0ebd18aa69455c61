"""Attention in windows, with a few blocks that see everything, as ViTDet has it (arXiv 2203.16527): for large images."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vit.config import ViTConfig
from vit.models.layers import Keys, Mask
from vit.models.vit import ViT, patch_grid, prefix_tokens


class Windowed(ViT):
    """The backbone, most blocks of which attend only within windows of the image.

    Class token and registers go through every window and come out as the mean of what the windows make of them. The last
    windows of a row or column that windows don't fill have fewer tokens.

    Args:
      config: the backbone's sizes and choices; positions may not be rotary if there are windows.
      window: side of a window in tokens; 0: all blocks see everything, and this is a ViT.
      global_blocks: blocks that see everything, evenly spread, the last among them.
      image_size, channels: as of `ViT`, which gets no head.
    """

    def __init__(
        self,
        config: ViTConfig,
        *,
        window: int,
        global_blocks: int,
        image_size: tuple[int, int],
        channels: int,
        rngs: nnx.Rngs,
    ):
        super().__init__(config, image_size=image_size, channels=channels, classes=0, rngs=rngs)
        self.window = window
        self.whole = whole_blocks(config.depth, global_blocks)

    def through(
        self,
        i: int,
        x: Float[Array, "B N D"],
        grid: tuple[int, int],
        keys: Keys | None,
        mask: Mask | None,
        attention: bool,
        rotate: Callable[[Array], Array] | None,
    ) -> tuple[Float[Array, "B N D"], Any]:
        """Block i, in windows unless it is one of those that see everything, or the image is no larger than a window.

        Raises `ValueError` where a mask, or attention over the whole image, is asked for of windows.
        """
        n = self.window
        if n and max(grid) > n and (mask is not None or attention):
            raise ValueError("windows have no mask, and no attention over the whole image")
        if not n or i in self.whole or max(grid) <= n:
            return super().through(i, x, grid, keys, mask, attention, rotate)
        P, (h, w), (B, _, D) = self.prefix, grid, x.shape
        rows, columns = -(-h // n), -(-w // n)
        count = rows * columns

        def cut(z: Array) -> Array:
            """(B, h, w, E) → (B · count, n · n, E), zeros around."""
            z = jnp.pad(z, ((0, 0), (0, rows * n - h), (0, columns * n - w), (0, 0)))
            return z.reshape(len(z), rows, n, columns, n, -1).swapaxes(2, 3).reshape(len(z) * count, n * n, -1)

        inside = cut(jnp.ones((1, h, w, 1), bool))[..., 0]
        inside = jnp.concatenate([jnp.ones((count, P), bool), inside], axis=1)
        among = None if h % n == 0 and w % n == 0 else jnp.tile(inside, (B, 1))[:, None, None, :]
        first = jnp.repeat(x[:, :P], count, axis=0)
        y = jnp.concatenate([first, cut(x[:, P:].reshape(B, h, w, D))], axis=1)
        y, _ = super().through(i, y, (n, n), None if keys is None else jnp.repeat(keys, count), among, False, None)
        first, y = y[:, :P].reshape(B, count, P, D).mean(axis=1), y[:, P:]
        y = y.reshape(B, rows, columns, n, n, D).swapaxes(2, 3).reshape(B, rows * n, columns * n, D)[:, :h, :w]
        return jnp.concatenate([first, y.reshape(B, h * w, D)], axis=1), None


def whole_blocks(depth: int, global_blocks: int) -> set[int]:
    """The blocks that see everything, evenly spread, the last among them."""
    count = min(global_blocks, depth)
    return {int(i) for i in np.ceil(np.linspace(0, depth, count + 1))[1:] - 1}


def saved_flops(config: ViTConfig, window: int, global_blocks: int, image_size: tuple[int, int]) -> int:
    """Operations that windows save of an image's forward pass (a multiply-add counts as two)."""
    (h, w), P = patch_grid(config, *image_size), prefix_tokens(config)[0]
    if not window or max(h, w) <= window:
        return 0

    def block(tokens: int, count: int) -> int:
        matrices = 3 if config.activation == "swiglu" else 2
        return count * tokens * config.width * (4 * config.width + matrices * config.mlp + 2 * tokens)

    each = block(h * w + P, 1) - block(window**2 + P, -(-h // window) * -(-w // window))
    return 2 * (config.depth - len(whole_blocks(config.depth, global_blocks))) * each
