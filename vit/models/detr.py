"""DETR (arXiv 2005.12872) on the backbone: the decoder of "Attention Is All You Need", whose queries become boxes with classes.

What it has of DETR's successors: every query has a box from the start, which each layer moves a little (DAB-DETR, arXiv
2201.12329), and how much a query attends to a place depends on where that lies by its box (Plain-DETR, arXiv 2308.01904). A
query is also told where in its box lies what it attended to, so that the box can follow. In training, further groups of queries
(Group DETR, arXiv 2207.13085) and noisy copies of the true boxes (DN-DETR, arXiv 2203.01305) go through the same layers, and
none sees another.

Glossary for shapes beside that of `vit.models.layers`: Q queries of a group, G groups, S queries in all, C noisy copies, M true
boxes, K classes.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vit.config import DetrHead, ViTConfig
from vit.models.boxes import centred, cornered
from vit.models.layers import Keys, LayerNorm, Linear, Mask, Mlp, attention_weights, dropout, fold_in, xavier
from vit.models.vit import ViT, flops, patch_grid

Prediction = dict[str, Array]  # boxes (B, Q, 4): y0, x0, y1, x1; classes (B, Q, K): logits
RARE = 0.01  # every class's probability at first, as the focal loss wants it (arXiv 1708.02002, section 4.1)
SIDE = 0.02  # boxes are told apart as if they were at least so large
EDGE = 1e-3  # boxes as logits stay so far away from 0 and 1
OCTAVES = 4  # of the sines' wavelengths, from two images down


class Noisy(NamedTuple):
    """Copies of the true boxes, with noise, that the decoder is to mend."""

    boxes: Float[Array, "B C M 4"]
    label: Int[Array, "B C M"]
    valid: Bool[Array, "B M"]


class View(NamedTuple):
    """What queries look at: tokens, the same with their places added, these (y, x), and the centres of rows and columns."""

    tokens: Float[Array, "B N D"]
    placed: Float[Array, "B N D"]
    places: Float[Array, "N 2"]
    rows: Float[Array, "h"]
    columns: Float[Array, "w"]


# Which of the queries, in how many groups that don't see one another, and whom of each group one may attend to.
Parts = list[tuple[slice, int, Mask | None]]


class Detr(ViT):
    """The backbone as it is, and below `head/` a decoder that asks its last patch tokens.

    Args:
      config: the backbone's sizes and choices; the decoder has its width, heads, MLP and dropout.
      head: queries, layers, groups.
      image_size: (H, W) in pixels that learned positions are made for; any other size works at call time.
      channels: of the images.
      classes: K.
    """

    def __init__(
        self,
        config: ViTConfig,
        head: DetrHead,
        *,
        image_size: tuple[int, int],
        channels: int,
        classes: int,
        rngs: nnx.Rngs,
    ):
        super().__init__(config, image_size=image_size, channels=channels, classes=0, rngs=rngs)
        self.head = Decoder(config, head, classes, dtype=jnp.dtype(config.dtype), rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "B H W C"],
        *,
        keys: Keys | None = None,
        mask: Mask | None = None,
        attention: bool = False,
        groups: int = 1,
        noisy: Noisy | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Predict boxes and their classes.

        Args:
          images: normalised pixels; the patch must divide H and W, which needn't be those of training.
          keys: one random key an example, for dropout and stochastic depth; None for evaluation.
          mask: of attention among the backbone's tokens, as `ViT` has it.
          attention: ask for the backbone's attention weights.
          groups: how many groups of queries to use, their predictions one behind the other.
          noisy: boxes to mend beside.

        Returns:
          `boxes` (B, G·Q, 4) and `classes`, float32 logits (B, G·Q, K); and a dict as of `ViT`, with `layers`, the same
          prediction after each layer but the last, and `mended`, those of noisy boxes (B, C·M, …) after each layer.
        """
        _, out = super().__call__(images, keys=keys, mask=mask, attention=attention)
        layers, out["mended"] = self.head(out["patches"], groups, noisy, fold_in(keys, self.config.depth + 1))
        *out["layers"], result = layers
        return result, out


class Decoder(nnx.Module):
    """Queries with their boxes, layers, and what makes classes and moved boxes of a query, the same after each layer."""

    def __init__(self, config: ViTConfig, head: DetrHead, classes: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        D, S, shared = config.width, head.groups * head.queries, {"dtype": dtype, "rngs": rngs}
        self.count, self.dtype = head.queries, dtype
        self.queries = nnx.Param(0.02 * jax.random.normal(rngs.params(), (S, D)))
        self.anchors = nnx.Param(_logit(jnp.concatenate([jnp.asarray(spread(head.queries))] * head.groups)))
        if head.denoising:
            self.labels = nnx.Param(0.02 * jax.random.normal(rngs.params(), (classes, D)))
        self.tokens_norm, self.norm = LayerNorm(D, **shared), LayerNorm(D, **shared)
        self.place = Chain((2 * D, D, D), **shared)
        self.layers = nnx.List([Layer(config, **shared) for _ in range(head.layers)])
        self.move = Chain((D, D, D, 4), last=nnx.initializers.zeros, exact=True, **shared)
        rare = nnx.initializers.constant(-math.log((1 - RARE) / RARE))
        self.classify = Linear(D, classes, kernel_init=xavier, bias_init=rare, dtype=jnp.float32, rngs=rngs)

    def __call__(
        self, patches: Float[Array, "B h w D"], groups: int = 1, noisy: Noisy | None = None, keys: Keys | None = None
    ) -> tuple[list[Prediction], list[Prediction]]:
        """What the queries say after each layer, and what becomes of noisy boxes."""
        (B, D), S, view = (len(patches), patches.shape[-1]), groups * self.count, self._view(patches)
        x = jnp.broadcast_to(self.queries[...][:S], (B, S, D))
        at = jnp.broadcast_to(self.anchors[...][:S], (B, S, 4))
        parts: Parts = [(slice(S), groups, None)]
        if noisy is not None:
            x = jnp.concatenate([x, self.labels[...][noisy.label].reshape(B, -1, D)], axis=1)
            at = jnp.concatenate([at, _logit(centred(noisy.boxes)).reshape(B, -1, 4)], axis=1)
            parts.append((slice(S, None), noisy.label.shape[1], noisy.valid[:, None, None, None]))
        x, every = x.astype(self.dtype), []
        for i, layer in enumerate(self.layers):
            boxes = jax.nn.sigmoid(at)
            place = self.place(sine(boxes, 2 * D).astype(x.dtype))
            x = layer(x, place, cornered(boxes), view, parts, fold_in(keys, i))
            y = self.norm(x)
            at = at + self.move(y).astype(jnp.float32)
            every.append({"boxes": cornered(jax.nn.sigmoid(at)), "classes": self.classify(y)})
            at = jax.lax.stop_gradient(at)  # each layer answers for its own move
        each = [[{name: x[:, part] for name, x in p.items()} for p in every] for part, _, _ in parts]
        return each[0], each[1] if noisy is not None else []

    def _view(self, patches: Float[Array, "B h w D"]) -> View:
        B, h, w, D = patches.shape
        tokens = self.tokens_norm(patches).reshape(B, h * w, D)
        rows, columns = ((jnp.arange(n) + 0.5) / n for n in (h, w))
        places = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(h * w, 2)
        return View(tokens, tokens + sine(places, D).astype(tokens.dtype), places, rows, columns)


class Layer(nnx.Module):
    """Queries attend to one another, then to the tokens, then an MLP; each branch is normalised first and added."""

    def __init__(self, config: ViTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        D, shared = config.width, {"dtype": dtype, "rngs": rngs}
        self.rate = config.dropout
        self.norm1, self.norm2, self.norm3 = (LayerNorm(D, **shared) for _ in range(3))
        self.among, self.across = (Attend(D, config.heads, **shared) for _ in range(2))
        self.rows, self.columns = (Chain((2, D, config.heads), **shared) for _ in range(2))
        self.seen = Linear(4 * config.heads, D, kernel_init=xavier, **shared)
        self.mlp = Mlp(D, config.mlp, activation=config.activation, rate=config.dropout, **shared)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        place: Float[Array, "B S D"],
        boxes: Float[Array, "B S 4"],
        view: View,
        parts: Parts,
        keys: Keys | None = None,
    ) -> Float[Array, "B S D"]:
        """The queries after this layer; `boxes` is where they are so far, and `place` the same as they are told it."""
        x = x + dropout(self._apart(self.norm1(x), place, parts), self.rate, fold_in(keys, 0))
        near = self._nearness(boxes, view.rows, view.columns)
        y, weights = self.across(self.norm2(x) + place, view.placed, view.tokens, near)
        y = y + self.seen(_seen(weights, view.places, boxes).astype(y.dtype))
        x = x + dropout(y, self.rate, fold_in(keys, 1))
        return x + dropout(self.mlp(self.norm3(x), fold_in(keys, 2)), self.rate, fold_in(keys, 3))

    def _apart(self, x: Float[Array, "B S D"], place: Float[Array, "B S D"], parts: Parts) -> Float[Array, "B S D"]:
        """Attention within each group, as if the others weren't there."""
        (B, _, D), every = x.shape, []
        for part, groups, mask in parts:
            y, z = (u[:, part].reshape(B, groups, -1, D) for u in (x, x + place))
            every.append(self.among(z, z, y, mask)[0].reshape(B, -1, D))
        return jnp.concatenate(every, axis=1)

    def _nearness(
        self, boxes: Float[Array, "B S 4"], rows: Float[Array, "h"], columns: Float[Array, "w"]
    ) -> Float[Array, "B heads S N"]:
        """What is added to the scores of attention: a sum of where rows and columns lie by a box's edges.

        At first it is near a Gaussian around the box's centre, whose deviation is half a side (arXiv 2101.07448).
        """

        def axis(chain: Chain, first: int, lines: Array) -> Array:
            far = lines[:, None] - boxes[..., None, first::2]  # (B, S, lines, 2)
            middle = jnp.square(far.sum(axis=-1) / jnp.maximum(far[..., 0] - far[..., 1], EDGE)) / 2
            far = jnp.sign(far) * jnp.log1p(32 * jnp.abs(far)) / math.log(33)  # near the edges it matters more
            return chain(far).astype(jnp.float32).transpose(0, 3, 1, 2) - middle[:, None]

        both = axis(self.rows, 0, rows)[..., None] + axis(self.columns, 1, columns)[..., None, :]
        return both.reshape(*both.shape[:3], -1)


class Attend(nnx.Module):
    """Multi-head attention of some tokens to others."""

    def __init__(self, width: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.heads = heads
        self.q, self.k, self.v, self.proj = (Linear(width, width, kernel_init=xavier, dtype=dtype, rngs=rngs) for _ in range(4))

    def __call__(
        self,
        queries: Float[Array, "*batch S D"],
        keys: Float[Array, "*batch N D"],
        values: Float[Array, "*batch N D"],
        mask: Mask | None = None,
    ) -> tuple[Float[Array, "*batch S D"], Float[Array, "*batch heads S N"]]:
        """What each query gathers, and the weights. `mask` is of (*batch, heads, S, N), additive or boolean."""

        def split(x: Array) -> Array:
            return x.reshape(*x.shape[:-1], self.heads, -1).swapaxes(-2, -3)

        weights = attention_weights(split(self.q(queries)), split(self.k(keys)), mask)
        y = jnp.matmul(weights.astype(values.dtype), split(self.v(values)))
        return self.proj(y.swapaxes(-2, -3).reshape(queries.shape)), weights


class Chain(nnx.Module):
    """Linear maps with a ReLU between each and the next; with `exact` the last one's results are float32."""

    def __init__(self, widths: tuple[int, ...], *, last: Any = xavier, exact: bool = False, dtype: DTypeLike, rngs: nnx.Rngs):
        kinds: list[Any] = [(xavier, dtype)] * (len(widths) - 2) + [(last, jnp.float32 if exact else dtype)]
        every = zip(widths, widths[1:], kinds, strict=False)
        self.layers = nnx.List([Linear(i, o, kernel_init=init, dtype=kind, rngs=rngs) for i, o, (init, kind) in every])

    def __call__(self, x: Float[Array, "*batch Din"]) -> Float[Array, "*batch Dout"]:
        """Each token on its own."""
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


def _seen(
    weights: Float[Array, "B heads S N"], places: Float[Array, "N 2"], boxes: Float[Array, "B S 4"]
) -> Float[Array, "B S F"]:
    """Where in its box lies what each head of a query attends to: mean, from the centre, and deviation, in sides of the box."""
    mean, square = (jnp.einsum("bhsn,nc->bshc", weights, x) for x in (places, places**2))
    centre, side = jnp.split(centred(boxes)[:, :, None], 2, axis=-1)
    deviation = jnp.sqrt(jnp.maximum(square - mean**2, 1e-6))
    seen = jnp.concatenate([mean - centre, deviation], axis=-1) / jnp.maximum(jnp.tile(side, 2), SIDE)
    return seen.reshape(*boxes.shape[:2], -1)


def sine(places: Float[Array, "*N n"], width: int) -> Float[Array, "*N D"]:
    """Sines and cosines of coordinates in [0, 1], of each the same number; the rest of the width is zeros."""
    count = width // (2 * places.shape[-1])
    angles = places[..., None] * (np.pi * 2 ** np.linspace(0, OCTAVES, count))
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*places.shape[:-1], -1)
    return jnp.pad(waves, ((0, 0),) * (waves.ndim - 1) + ((0, width - waves.shape[-1]),))


def spread(count: int) -> Float[np.ndarray, "Q 4"]:
    """Boxes (centre y, centre x, height, width) that are evenly spread: the first points of the R2 sequence."""
    golden = 1.32471795724474602596  # the root of x³ = x + 1
    centres = (0.5 + np.arange(1, count + 1)[:, None] / np.array([golden, golden**2])) % 1
    return np.concatenate([centres, np.full((count, 2), np.clip(count**-0.5, 0.1, 0.5))], axis=1, dtype=np.float32)


def _logit(boxes: Float[Array, "*N 4"]) -> Float[Array, "*N 4"]:
    boxes = jnp.clip(boxes, EDGE, 1 - EDGE)
    return jnp.log(boxes / (1 - boxes))


def detr_flops(config: ViTConfig, head: DetrHead, *, image_size: tuple[int, int], channels: int, classes: int) -> int:
    """Operations of the matmuls and convolutions of one image's forward pass in evaluation (a multiply-add counts as two)."""
    (h, w), D, Q = patch_grid(config, *image_size), config.width, head.queries
    N, matrices = h * w, 3 if config.activation == "swiglu" else 2
    attend = Q * D * (4 * D + 2 * Q) + 2 * (Q + N) * D * D + 2 * Q * N * D + 4 * Q * config.heads * (N + D)
    near = Q * (h + w) * D * (2 + config.heads)
    ends = 3 * D * D + 2 * D * D + 4 * D + D * classes  # places, moves, classes
    total = flops(config, image_size=image_size, channels=channels, classes=0)
    return total + 2 * head.layers * (attend + near + Q * (matrices * D * config.mlp + ends))
