"""Detection at every place: which places answer for which box, their loss, and the boxes that are left in the end.

Places are assigned by task alignment (TOOD, arXiv 2108.07755): for each box those that fit it best already, by score and
overlap, at whatever size of the pyramid. Glossary for shapes: N places, M boxes, K classes, F boxes found.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vit.config import NOBODY, DenseHead
from vit.models.boxes import area, centred, iou, nms, paired_giou

SCORE, FIT = 0.5, 6.0  # exponents of score and overlap in how well a place fits a box


class Assigned(NamedTuple):
    """For each place: the box that it answers for, how well it fits, 0 for none, and whether it counts at all."""

    box: Int[Array, "N"]
    fit: Float[Array, "N"]
    counts: Bool[Array, "N"]


def assigned(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, "N K"],
    where: Float[Array, "N 2"],
    reach: Float[Array, "N 2"],
    truth: Float[Array, "M 4"],
    label: Int[Array, "M"],
    crowd: Bool[Array, "M"],
    most: int,
) -> Assigned:
    """Which of the M true boxes each place answers for.

    A place may answer for a box that its centre lies in, or is nearer to the centre of than its stride: no box is too small.
    Of those the `most` best answer; a place that is among the best of several boxes takes the one that it overlaps most. Fits
    are relative: a box's best place has the box's best overlap. Places in a crowd that answer for nothing don't count.

    Args:
      boxes, scores: predicted, without gradient; scores are probabilities.
      where, reach: the places' centres and strides, as shares of the image's sides.
      truth, label, crowd: the true boxes; a `label` of NOBODY is none.
      most: places of a box.
    """
    wanted = (label != NOBODY) & ~crowd
    middle, sides = centred(truth)[:, None, :2], centred(truth)[:, None, 2:]
    candidate = (jnp.abs(where - middle) < jnp.maximum(sides / 2, reach)).all(axis=-1) & wanted[:, None]
    overlap = iou(truth, boxes)
    align = jnp.where(candidate, scores.T[jnp.maximum(label, 0)] ** SCORE * overlap**FIT, -1.0)
    _, best = jax.lax.top_k(align, min(most, align.shape[1]))
    chosen = jnp.zeros(align.shape, bool).at[jnp.arange(len(truth))[:, None], best].set(True) & candidate
    box = jnp.argmax(jnp.where(chosen, overlap, -1.0), axis=0)
    chosen &= jnp.arange(len(truth))[:, None] == box
    align, overlap = jnp.where(chosen, align, 0.0), jnp.where(chosen, overlap, 0.0)
    fit = align / jnp.maximum(align.max(axis=1, keepdims=True), 1e-37) * overlap.max(axis=1, keepdims=True)
    ignored = ((where >= truth[:, None, :2]) & (where < truth[:, None, 2:])).all(axis=-1) & (crowd & (label != NOBODY))[:, None]
    return Assigned(box, fit.sum(axis=0), ~ignored.any(axis=0) | chosen.any(axis=0))


def loss(
    boxes: Float[Array, "N 4"],
    classes: Float[Array, "N K"],
    where: Float[Array, "N 2"],
    reach: Float[Array, "N 2"],
    truth: Float[Array, "M 4"],
    label: Int[Array, "M"],
    crowd: Bool[Array, "M"],
    head: DenseHead,
) -> Float[Array, ""]:
    """An example's loss: cross-entropy of the scores with the fit as target, and GIoU weighted by it, over the sum of fits."""
    still, scores = jax.lax.stop_gradient((boxes, jax.nn.sigmoid(classes)))
    found = assigned(still, scores, where, reach, truth, label, crowd, head.assigned)
    target = found.fit[:, None] * (jnp.arange(classes.shape[1]) == label[found.box][:, None])
    total = jnp.maximum(found.fit.sum(), 1.0)
    # |target - score|^2, held fixed, as weight (after arXiv 2006.04388): what is right already, nearly all of the background,
    # counts little.
    nll = jnp.maximum(classes, 0) - classes * target + jnp.log1p(jnp.exp(-jnp.abs(classes)))
    cross = jnp.sum((target - scores) ** 2 * nll * found.counts[:, None])
    fits = jnp.sum(found.fit * (1 - paired_giou(boxes, truth[found.box])))
    return (cross + head.box_weight * fits) / total


def chosen(
    boxes: Float[Array, "N 4"], classes: Float[Array, "N K"], overlap: float, found: int, among: int
) -> tuple[Float[Array, "F 4"], Float[Array, "F"], Int[Array, "F"]]:
    """The best boxes of an image after NMS among so many, with scores and classes, best first; a score of 0 stands for no box.

    Each place may give a box of every class. Boxes of which nothing lies in the image are none.
    """
    K = classes.shape[1]
    scores, at = jax.lax.top_k(jax.nn.sigmoid(classes).reshape(-1), min(among, classes.size))
    kinds, boxes = at % K, jnp.clip(boxes[at // K], 0, 1)
    scores = jnp.where(area(boxes) > 0, scores, 0)
    scores = jnp.where(nms(boxes, scores, kinds, overlap), scores, 0)
    scores, best = jax.lax.top_k(scores, min(found, len(scores)))
    spare = found - len(best)
    boxes, kinds = boxes[best], kinds[best].astype(jnp.int32)
    return jnp.pad(boxes, ((0, spare), (0, 0))), jnp.pad(scores, (0, spare)), jnp.pad(kinds, (0, spare))
