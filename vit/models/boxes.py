"""Geometry of boxes, each (y0, x0, y1, x1) with y0 ≤ y1 and x0 ≤ x1: overlaps, other forms, non-maximum suppression."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

TINY = 1e-9  # below any area that counts


def area(boxes: Float[Array, "*N 4"]) -> Float[Array, "*N"]:
    """Height times width."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(a: Float[Array, "N 4"], b: Float[Array, "M 4"]) -> Float[Array, "N M"]:
    """Intersection over union of each box of one with each of the other; 0 of two boxes without any area."""
    return _overlaps(a[:, None], b)[0]


def giou(a: Float[Array, "N 4"], b: Float[Array, "M 4"]) -> Float[Array, "N M"]:
    """Generalised IoU (arXiv 1902.09630) of each with each: IoU less the share of their common frame that neither covers."""
    return _overlaps(a[:, None], b)[1]


def paired_iou(a: Float[Array, "*N 4"], b: Float[Array, "*N 4"]) -> Float[Array, "*N"]:
    """Intersection over union of each box with the one at its place."""
    return _overlaps(a, b)[0]


def paired_giou(a: Float[Array, "*N 4"], b: Float[Array, "*N 4"]) -> Float[Array, "*N"]:
    """Generalised IoU of each box with the one at its place."""
    return _overlaps(a, b)[1]


def _overlaps(a: Array, b: Array) -> tuple[Array, Array]:
    """IoU and generalised IoU of boxes whose leading axes broadcast."""
    common = jnp.maximum(jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2]), 0).prod(axis=-1)
    union = area(a) + area(b) - common
    frame = (jnp.maximum(a[..., 2:], b[..., 2:]) - jnp.minimum(a[..., :2], b[..., :2])).prod(axis=-1)
    overlap = common / jnp.maximum(union, TINY)
    return overlap, overlap - (frame - union) / jnp.maximum(frame, TINY)


def centred(boxes: Float[Array, "*N 4"]) -> Float[Array, "*N 4"]:
    """As (centre y, centre x, height, width)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def cornered(boxes: Float[Array, "*N 4"]) -> Float[Array, "*N 4"]:
    """The inverse of `centred`."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def nms(
    boxes: Float[Array, "N 4"], scores: Float[Array, "N"], kinds: Int[Array, "N"], overlap: float | Float[Array, ""]
) -> Bool[Array, "N"]:
    """Which boxes are left by greedy non-maximum suppression: no box of its kind and a better score is left that covers it.

    To cover is an IoU over `overlap`; of equal scores the first is the better. Each round settles the boxes that the settled
    ones decide, so the loop ends after as many rounds as the longest chain of boxes that cover the next has links.
    """
    better = (scores[:, None] > scores) | (
        (scores[:, None] == scores) & (jnp.arange(len(scores))[:, None] < jnp.arange(len(scores)))
    )
    covers = better & (kinds[:, None] == kinds) & (iou(boxes, boxes) > overlap)

    def settle(state: tuple[Array, Array]) -> tuple[Array, Array]:
        left, _ = state
        return ~(covers & left[:, None]).any(axis=0), left

    everything = jnp.ones(len(scores), bool)
    return jax.lax.while_loop(lambda s: (s[0] != s[1]).any(), settle, settle((everything, ~everything)))[0]
