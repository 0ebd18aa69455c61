"""YOLOS (arXiv 2106.00666): detection tokens go through the whole encoder and become boxes with classes.

Glossary for shapes beside that of `vit.models.layers`: Q detection tokens, K classes, L blocks but one.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vit.config import ViTConfig, YolosHead
from vit.models.boxes import cornered
from vit.models.detr import Chain, Prediction
from vit.models.eomt import widened
from vit.models.layers import Keys, Mask, fold_in
from vit.models.positions import resample_positions
from vit.models.vit import ViT, flops, patch_grid, prefix_tokens


class Yolos(ViT):
    """The backbone as it is, and below `head/` all that YOLOS adds.

    Args:
      config: the backbone's sizes and choices; boxes are made of normalised tokens where it normalises tokens.
      head: detection tokens, and whether positions are added between the blocks.
      image_size: (H, W) in pixels that learned positions are made for; any other size works at call time.
      channels: of the images.
      classes: K, without "no object".
    """

    def __init__(
        self,
        config: ViTConfig,
        head: YolosHead,
        *,
        image_size: tuple[int, int],
        channels: int,
        classes: int,
        rngs: nnx.Rngs,
    ):
        super().__init__(config, image_size=image_size, channels=channels, classes=0, rngs=rngs)
        tokens = self.prefix + self.grid[0] * self.grid[1]
        self.head = Head(config, head, tokens, classes, dtype=jnp.dtype(config.dtype), rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "B H W C"],
        *,
        keys: Keys | None = None,
        mask: Mask | None = None,
        attention: bool = False,
    ) -> tuple[Any, dict[str, Any]]:
        """Predict boxes and their classes.

        Args:
          images: normalised pixels; the patch must divide H and W, which needn't be those of training.
          keys: one random key an example, for dropout and stochastic depth; None for evaluation.
          mask: of attention, as `ViT` has it; detection tokens may be attended to and attend to all tokens.
          attention: ask for the attention weights.

        Returns:
          `boxes` (B, Q, 4), y0 x0 y1 x1, with `classes`, float32 logits (B, Q, K + 1), the last "no object"; and a dict as of
          `ViT`, with all tokens but those of detection, and `queries` (B, Q, D), these, normalised, the last ones; `layers` is
          empty. In `attention` detection tokens stand in front of all others.
        """
        grid, out = patch_grid(self.config, *images.shape[1:3]), {}
        x = out["embedded"] = self.embed(images, keys)
        Q, mask = self.head.tokens.shape[1], widened(mask, x.shape[1], self.head.tokens.shape[1])
        own = jnp.broadcast_to(self.head.tokens[...].astype(x.dtype), (len(x), Q, x.shape[-1]))
        x, rotate, middle = jnp.concatenate([own, x], axis=1), self.rotation(grid, Q), self._middle(grid)
        out["blocks"], out["layers"], weights = [], [], []
        for i in range(len(self.blocks)):
            x, w = self.through(i, x, grid, fold_in(keys, i), mask, attention, rotate)
            x = x + middle[i].astype(x.dtype) if middle is not None and i < len(middle) else x
            out["blocks"].append(x[:, Q:])
            weights.append(w)
        if attention:
            out["attention"] = weights

        x = self.norm(x) if self.config.final_norm == "tokens" else x
        out["queries"], out["tokens"] = x[:, :Q], x[:, Q:]
        patches = out["tokens"][:, self.prefix :]
        out["patches"] = patches.reshape(len(x), *grid, -1)
        pooled, _ = self._pool(out["tokens"], patches)
        out["pooled"] = self.fc_norm(pooled) if self.config.final_norm == "pooled" else pooled
        return self.head(out["queries"]), out

    def _middle(self, grid: tuple[int, int]) -> Float[Array, "L N D"] | None:
        """What is added to all tokens after each block but the last, for this grid."""
        if not hasattr(self.head, "middle"):
            return None
        table, before = self.head.middle[...], self.head.tokens.shape[1] + self.prefix
        method = self.config.resample
        resized = jax.vmap(lambda x: resample_positions(x[None], self.grid, grid, method)[0])(table[:, before:])
        return jnp.concatenate([table[:, :before], resized], axis=1)


class Head(nnx.Module):
    """Detection tokens, positions between the blocks, and what makes boxes and classes of a token."""

    def __init__(self, config: ViTConfig, head: YolosHead, tokens: int, classes: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        D, Q, shared = config.width, head.queries, {"dtype": dtype, "rngs": rngs}
        self.tokens = nnx.Param(0.02 * jax.random.truncated_normal(rngs.params(), -2, 2, (1, Q, D)))
        if head.middle:
            rows = (config.depth - 1, Q + tokens, D)
            self.middle = nnx.Param(0.02 * jax.random.truncated_normal(rngs.params(), -2, 2, rows))
        self.classify = Chain((D, D, D, classes + 1), exact=True, **shared)
        self.box = Chain((D, D, D, 4), exact=True, **shared)

    def __call__(self, queries: Float[Array, "B Q D"]) -> Prediction:
        """A box is found by its centre, height and width."""
        boxes = jax.nn.sigmoid(self.box(queries).astype(jnp.float32))
        return {"boxes": cornered(boxes), "classes": self.classify(queries).astype(jnp.float32)}


def yolos_flops(config: ViTConfig, head: YolosHead, *, image_size: tuple[int, int], channels: int, classes: int) -> int:
    """Operations of the matmuls and convolutions of one image's forward pass (a multiply-add counts as two)."""
    (h, w), D, Q = patch_grid(config, *image_size), config.width, head.queries
    N, matrices = h * w + prefix_tokens(config)[0], 3 if config.activation == "swiglu" else 2
    joined = Q * D * (4 * D + matrices * config.mlp) + 2 * ((N + Q) ** 2 - N**2) * D
    ends = Q * D * (4 * D + classes + 1 + 4)
    total = flops(config, image_size=image_size, channels=channels, classes=0)
    return total + 2 * (config.depth * joined + ends)
