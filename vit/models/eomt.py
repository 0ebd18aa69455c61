"""EoMT, the encoder-only mask transformer (arXiv 2503.19108): queries join the last blocks and become masks with classes.

Glossary for shapes beside that of `vit.models.layers`: Q queries, K classes, L blocks that queries go through.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vit.config import EomtHead, ViTConfig
from vit.models.layers import ACTIVATIONS, Keys, LayerNorm, Linear, Mask, fold_in
from vit.models.vit import ViT, flops, patch_grid

Prediction = dict[str, Array]  # masks (B, Q, h, w): logits; classes (B, Q, K + 1): logits, the last of "no object"
POWER = 0.9  # of the annealing
torchlike = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default for its Linear


class Eomt(ViT):
    """The backbone as it is, and below `head/` all that EoMT adds.

    Args:
      config: the backbone's sizes and choices; masks are made of normalised tokens where it normalises tokens.
      head: queries, blocks, upscaling.
      image_size: (H, W) in pixels that learned positions are made for; any other size works at call time.
      channels: of the images.
      classes: K, without "no object".
    """

    def __init__(
        self,
        config: ViTConfig,
        head: EomtHead,
        *,
        image_size: tuple[int, int],
        channels: int,
        classes: int,
        rngs: nnx.Rngs,
    ):
        super().__init__(config, image_size=image_size, channels=channels, classes=0, rngs=rngs)
        self.joined = min(head.blocks, config.depth)
        self.head = Head(config, head, classes, dtype=jnp.dtype(config.dtype), rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "B H W C"],
        *,
        keys: Keys | None = None,
        mask: Mask | None = None,
        attention: bool = False,
        anneal: float | Float[Array, "L"] = 0.0,
    ) -> tuple[Any, dict[str, Any]]:
        """Predict masks and their classes.

        Args:
          images: normalised pixels; the patch must divide H and W, which needn't be those of training.
          keys: one random key an example, for dropout, stochastic depth and annealing; None for evaluation.
          mask: of attention, as `ViT` has it; queries may be attended to and attend to all tokens.
          attention: ask for the attention weights.
          anneal: the share of queries that attend to no patches but those of their own mask so far, in each joined block or in
            all; a plain 0 for none. Without keys it is all of them where the share is over a half.

        Returns:
          `masks`, float32 logits (B, Q, h, w) on the upscaled grid, with `classes`, float32 logits (B, Q, K + 1), the last "no
          object"; and a dict as of `ViT`, with all tokens but queries, and `queries` (B, Q, D), normalised, the last ones;
          `layers`, the same prediction before each joined block where masks restrict attention, else none. In `attention`
          queries stand in front of all tokens from where they join.
        """
        grid, first, out = patch_grid(self.config, *images.shape[1:3]), len(self.blocks) - self.joined, {}
        x = out["embedded"] = self.embed(images, keys)
        Q, rotate, masked = self.head.queries.shape[0], self.rotation(grid), not (isinstance(anneal, float) and anneal == 0)
        out["blocks"], out["layers"], weights = [], [], []
        for i in range(len(self.blocks)):
            if i == first:
                queries = jnp.broadcast_to(self.head.queries[...].astype(x.dtype), (len(x), Q, x.shape[-1]))
                x, rotate, mask = jnp.concatenate([queries, x], axis=1), self.rotation(grid, Q), widened(mask, x.shape[1], Q)
            among = mask
            if masked and i >= first:
                out["layers"].append(self._predict(x, grid))
                share = jnp.broadcast_to(jnp.asarray(anneal, jnp.float32), (self.joined,))[i - first]
                shown = _shown(out["layers"][-1]["masks"], grid, share, fold_in(keys, len(self.blocks) + 1 + i))
                among = _restricted(mask, shown, x.shape[1])
            x, w = self.through(i, x, grid, fold_in(keys, i), among, attention, rotate)
            out["blocks"].append(x[:, Q:] if i >= first else x)
            weights.append(w)
        if attention:
            out["attention"] = weights

        result, x = self._predict(x, grid), self._normed(x)
        out["queries"], out["tokens"] = x[:, :Q], x[:, Q:]
        patches = out["tokens"][:, self.prefix :]
        out["patches"] = patches.reshape(len(x), *grid, -1)
        pooled, _ = self._pool(out["tokens"], patches)
        out["pooled"] = self.fc_norm(pooled) if self.config.final_norm == "pooled" else pooled
        return result, out

    def _normed(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        return self.norm(x) if self.config.final_norm == "tokens" else x

    def _predict(self, x: Float[Array, "B N D"], grid: tuple[int, int]) -> Prediction:
        """Masks and classes of tokens with the queries in front."""
        x, Q = self._normed(x), self.head.queries.shape[0]
        return self.head(x[:, :Q], x[:, Q + self.prefix :].reshape(len(x), *grid, -1))


class Head(nnx.Module):
    """Queries, and what makes masks and classes of them."""

    def __init__(self, config: ViTConfig, head: EomtHead, classes: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        D, shared = config.width, {"dtype": dtype, "rngs": rngs}
        activation = "gelu" if config.activation == "swiglu" else config.activation
        self.queries = nnx.Param(jax.random.normal(rngs.params(), (head.queries, D)))
        self.upscale = nnx.List([Upscale(D, activation, **shared) for _ in range(head.upscale)])
        self.mask = MaskMlp(D, activation, **shared)
        self.classify = Linear(D, classes + 1, kernel_init=torchlike, dtype=jnp.float32, rngs=rngs)

    def __call__(self, queries: Float[Array, "B Q D"], patches: Float[Array, "B h w D"]) -> Prediction:
        """A mask is the product of a query's vector and that of each place of the upscaled grid."""
        for upscale in self.upscale:
            patches = upscale(patches)
        B, h, w, D = patches.shape
        masks = jnp.matmul(self.mask(queries), patches.reshape(B, h * w, D).mT, preferred_element_type=jnp.float32)
        return {"masks": masks.reshape(B, -1, h, w), "classes": self.classify(queries)}


class Upscale(nnx.Module):
    """A grid of twice the sides: each token becomes four, then a 3x3 convolution of each channel for itself."""

    def __init__(self, width: int, activation: str, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.activation = activation
        self.up = Linear(width, 4 * width, use_bias=False, kernel_init=torchlike, dtype=dtype, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(width))
        self.depthwise = Depthwise(width, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B 2*h 2*w D"]:
        """The grid."""
        B, h, w, D = x.shape
        x = self.up(x).reshape(B, h, w, 2, 2, D).swapaxes(2, 3).reshape(B, 2 * h, 2 * w, D)
        return self.norm(self.depthwise(ACTIVATIONS[self.activation](x + self.bias[...].astype(x.dtype))))


class Depthwise(nnx.Module):
    """A 3x3 convolution of each channel for itself, as a sum of shifts: XLA's own has a slow backward on a CPU."""

    def __init__(self, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.dtype = dtype
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), (3, 3, width), minval=-1 / 3, maxval=1 / 3))

    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
        """Zeros stand around the grid."""
        h, w = x.shape[1:3]
        around, kernel = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), self.kernel[...].astype(self.dtype)
        shifts = [around[:, i : i + h, j : j + w] * kernel[i, j] for i in range(3) for j in range(3)]
        return sum(shifts[1:], shifts[0])


class MaskMlp(nnx.Module):
    """A query → the vector that its mask is made with."""

    def __init__(self, width: int, activation: str, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.activation = activation
        self.fc1, self.fc2, self.fc3 = (Linear(width, width, kernel_init=torchlike, dtype=dtype, rngs=rngs) for _ in range(3))

    def __call__(self, x: Float[Array, "B Q D"]) -> Float[Array, "B Q D"]:
        """Three layers."""
        act = ACTIVATIONS[self.activation]
        return self.fc3(act(self.fc2(act(self.fc1(x)))))


def annealed(progress: float | Float[Array, ""], blocks: int) -> Float[Array, "L"]:
    """The share of queries whose attention is masked in each joined block, at a share `progress` of the training.

    Of `blocks` + 2 equal parts of the training the first goes by unchanged; in the next ones block after block falls from 1
    to 0, as (1 - t) to the power of 0.9; the last is without masks, as evaluation is.
    """
    part = jnp.asarray(progress, jnp.float32) * (blocks + 2) - 1 - jnp.arange(blocks)
    return (1 - jnp.clip(part, 0, 1)) ** POWER


def eomt_flops(config: ViTConfig, head: EomtHead, *, image_size: tuple[int, int], channels: int, classes: int) -> int:
    """Operations of the matmuls and convolutions of one image's forward pass without masks (a multiply-add counts as two)."""
    (h, w), D, Q = patch_grid(config, *image_size), config.width, head.queries
    N, matrices = h * w + config.registers + 1, 3 if config.activation == "swiglu" else 2
    joined = Q * D * (4 * D + matrices * config.mlp) + 2 * ((N + Q) ** 2 - N**2) * D
    places = h * w * sum(4**i * (4 * D * D + 4 * 9 * D) for i in range(head.upscale))
    masks = Q * (3 * D * D + h * w * 4**head.upscale * D + D * (classes + 1))
    total = flops(config, image_size=image_size, channels=channels, classes=0)
    return total + 2 * (min(head.blocks, config.depth) * joined + places + masks)


def _shown(
    masks: Float[Array, "B Q a b"], grid: tuple[int, int], share: Float[Array, ""], keys: Keys | None
) -> Bool[Array, "B Q P"]:
    """Which patches a query may attend to: all, or with a probability of `share` those of its mask."""
    B, Q = masks.shape[:2]
    inside = jax.image.resize(jax.lax.stop_gradient(masks), (B, Q, *grid), "linear", antialias=False) > 0
    if keys is None:
        free = jnp.broadcast_to(share <= 0.5, (B, Q))
    else:
        free = jax.vmap(lambda key: jax.random.uniform(key, (Q,)))(keys) >= share
    return inside.reshape(B, Q, -1) | free[..., None]


def _restricted(mask: Mask | None, shown: Bool[Array, "B Q P"], N: int) -> Mask:
    """A mask of attention among N tokens, queries first and patches last, under which queries see only what is shown."""
    Q, P = shown.shape[1:]
    allowed = jnp.pad(shown, ((0, 0), (0, N - Q), (N - P, 0)), constant_values=True)[:, None]
    if mask is None:
        return allowed
    if jnp.issubdtype(mask.dtype, jnp.floating):
        return jnp.where(allowed, mask, -jnp.inf)
    return allowed & (mask != 0)


def widened(mask: Mask | None, N: int, Q: int) -> Mask | None:
    """A mask of attention among N tokens with Q more in front, which nothing restricts."""
    if mask is None:
        return None
    whole = jnp.broadcast_to(mask, (*mask.shape[:-2], N, N))
    fill = 0 if jnp.issubdtype(mask.dtype, jnp.floating) else 1
    return jnp.pad(whole, ((0, 0),) * (whole.ndim - 2) + ((Q, 0), (Q, 0)), constant_values=fill)
