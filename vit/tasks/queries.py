"""Boxes that queries predict (DETR arXiv 2005.12872, YOLOS arXiv 2106.00666): targets, matching, losses, what is found.

A prediction is a dict of `boxes` (…, Q, 4) and of `classes`, logits: with a `DetrHead` (…, Q, K), each for itself, and the
loss is focal (arXiv 1708.02002); with a `YolosHead` (…, Q, K + 1), the last "no object", and the loss is a cross-entropy.
Glossary for shapes: Q queries, M targets, K classes, L layers, P predictions of one image, C noisy copies of its boxes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vit.config import NOBODY, DetrHead, YolosHead
from vit.models.boxes import area, centred, cornered, giou, iou, paired_giou
from vit.models.detr import Noisy, Prediction
from vit.models.layers import Keys
from vit.models.matching import match

ALPHA, GAMMA = 0.25, 2  # of the focal loss
AMONG = 0.5  # a box with so much of its area in a crowd isn't wrong
APART = 2**17  # beyond the numbers that the model folds into its keys
MOVED, RENAMED = 0.4, 0.2  # DN-DETR's: how far edges move, of half a side, and the share of copies with another class


class Targets(NamedTuple):
    """What an image's boxes should be, with room for M of them; and all its boxes that are a crowd's."""

    boxes: Float[Array, "*B M 4"]
    label: Int[Array, "*B M"]
    valid: Bool[Array, "*B M"]
    crowds: Float[Array, "*B N 4"]
    crowded: Bool[Array, "*B N"]


def targets(batch: dict[str, Array], queries: int) -> Targets:
    """The targets of a batch's `boxes`, `label` and `crowd`; of more than there are queries, those with the largest areas."""
    boxes, label, crowd = batch["boxes"], batch["label"], batch["crowd"]
    there = label != NOBODY
    valid = there & ~crowd
    label = jnp.maximum(label, 0)
    crowds = boxes, there & crowd
    if boxes.shape[1] > queries:
        order = jax.lax.top_k(jnp.where(valid, area(boxes), -1), queries)[1]
        boxes, label, valid = (jax.vmap(lambda row, these: row[these])(x, order) for x in (boxes, label, valid))
    return Targets(boxes, label, valid, *crowds)


def query_loss(model: Any, batch: dict[str, Array], head: DetrHead | YolosHead, keys: Keys | None) -> Float[Array, "B"]:
    """Each example's loss in training; without keys that of the first group's predictions alone.

    With a `DetrHead` the loss of every layer is added, and that of mending noisy boxes.
    """
    wanted = targets(batch, head.queries)
    if isinstance(head, YolosHead) or keys is None:
        prediction, out = model(batch["image"], keys=keys)
        return loss([*out["layers"], prediction], wanted, head)
    noise = noisy(wanted, head.denoising, model.head.classify.out_features, keys) if head.denoising else None
    prediction, out = model(batch["image"], keys=keys, groups=head.groups, noisy=noise)
    total = loss([*out["layers"], prediction], wanted, head)
    return total + loss(out["mended"], wanted, head, known=noise) if noise else total


def loss(
    predictions: list[Prediction], wanted: Targets, head: DetrHead | YolosHead, known: Noisy | None = None
) -> Float[Array, "B"]:
    """Each example's weighted loss, summed over predictions, each of which may be several groups one behind the other.

    Where they are of `known` noisy boxes, each answers for the box it was made from.
    """
    parts = losses(predictions, wanted, head, known)
    weights = {"classes": head.class_weight, "boxes": head.box_weight, "giou": head.giou_weight}
    return sum((weights[name] * parts[name].sum(axis=1) for name in weights), jnp.zeros(len(wanted.label)))


def losses(
    predictions: list[Prediction], wanted: Targets, head: DetrHead | YolosHead, known: Noisy | None = None
) -> dict[str, Float[Array, "B L"]]:
    """The loss of the `classes`, L1 of the `boxes` (centre, height, width) and 1 - `giou`, unweighted, of every prediction.

    As in DETR but that the mean over targets is one of each image, not of the batch: so an example's loss doesn't depend on its
    neighbours. Of groups it is the mean.
    """
    count, room = head.queries, wanted.label.shape[1]
    every = jax.tree.map(lambda *xs: jnp.stack(xs, axis=1), *predictions)
    B, L = every["classes"].shape[:2]
    size = count if known is None else room
    groups = jax.tree.map(lambda x: x.reshape(B, -1, size, x.shape[-1]), every)  # (B, L·G, Q, …)

    def one(groups: Prediction, wanted: Targets) -> dict[str, Float[Array, "P"]]:
        if known is None:
            cost = jax.vmap(lambda p: costs(p, wanted, head))(groups)
            query = match(cost, jnp.broadcast_to(wanted.valid, cost[:, 0].shape))
        else:
            query = jnp.broadcast_to(jnp.where(wanted.valid, jnp.arange(room), NOBODY), (len(groups["boxes"]), room))
        return jax.vmap(lambda p, q: _losses(p, wanted, q, head, known is not None))(groups, query)

    return jax.tree.map(lambda x: x.reshape(B, L, -1).mean(axis=2), jax.vmap(one)(groups, wanted))


def costs(prediction: dict[str, Float[Array, "..."]], wanted: Targets, head: DetrHead | YolosHead) -> Float[Array, "Q M"]:
    """What it would cost that a query answers for a target; no gradient passes."""
    boxes, classes = jax.lax.stop_gradient((prediction["boxes"], prediction["classes"]))
    far = jnp.abs(centred(boxes)[:, None] - centred(wanted.boxes)).sum(axis=-1)
    if isinstance(head, DetrHead):
        named = focal(classes, jnp.ones_like(classes)) - focal(classes, jnp.zeros_like(classes))
    else:
        named = -jax.nn.softmax(classes)
    overlap = giou(boxes, wanted.boxes)
    return head.class_weight * named[:, wanted.label] + head.box_weight * far - head.giou_weight * overlap


def _losses(
    prediction: dict[str, Float[Array, "..."]],
    wanted: Targets,
    query: Int[Array, "M"],
    head: DetrHead | YolosHead,
    known: bool,
) -> dict[str, Float[Array, ""]]:
    """Of one prediction of an image, whose `query` answers for each target; of known boxes the others don't count."""
    boxes, classes = prediction["boxes"], prediction["classes"]
    count = jnp.maximum(wanted.valid.sum(), 1)
    hit = query == jnp.arange(len(boxes))[:, None]  # (Q, M); a target that isn't valid hits none
    taken = hit.any(axis=1)
    counts = taken | (~_in_crowds(boxes, wanted) & (not known))
    if isinstance(head, DetrHead):
        truth = hit.astype(jnp.float32) @ jax.nn.one_hot(wanted.label, classes.shape[1])
        named = jnp.where(counts[:, None], focal(classes, truth), 0).sum() / count
    else:
        K = classes.shape[1] - 1
        target = jnp.where(taken, (hit * wanted.label).sum(axis=1), K)
        nll = -jnp.take_along_axis(jax.nn.log_softmax(classes), target[:, None], axis=1)[:, 0]
        weight = jnp.where(taken, 1.0, head.no_object) * counts
        named = (weight * nll).sum() / jnp.maximum(weight.sum(), 1e-6)
    mine = boxes[jnp.maximum(query, 0)]  # of the targets, in their order
    far = jnp.abs(centred(mine) - centred(wanted.boxes)).sum(axis=-1)
    apart = 1 - paired_giou(mine, wanted.boxes)
    return {
        "classes": named,
        "boxes": jnp.where(wanted.valid, far, 0).sum() / count,
        "giou": jnp.where(wanted.valid, apart, 0).sum() / count,
    }


def focal(logits: Float[Array, "*Q K"], truth: Float[Array, "*Q K"]) -> Float[Array, "*Q K"]:
    """Binary cross-entropy of each class, the less the surer the right answer is."""
    p = jax.nn.sigmoid(logits)
    cross = jax.nn.softplus(logits) - logits * truth
    missed = p + truth - 2 * p * truth
    return (ALPHA * truth + (1 - ALPHA) * (1 - truth)) * missed**GAMMA * cross


def _in_crowds(boxes: Float[Array, "Q 4"], wanted: Targets) -> Bool[Array, "Q"]:
    """Which boxes are mostly inside a crowd's."""
    boxes = jax.lax.stop_gradient(boxes)
    overlap = iou(boxes, wanted.crowds)
    common = overlap / (1 + overlap) * (area(boxes)[:, None] + area(wanted.crowds))
    return ((common >= AMONG * area(boxes)[:, None]) & wanted.crowded).any(axis=1)


def noisy(wanted: Targets, copies: int, classes: int, keys: Keys) -> Noisy:
    """Copies of the targets, each moved, stretched and sometimes given another class at random."""

    def one(wanted: Targets, key: Key[Array, ""]) -> tuple[Array, Array]:
        move, stretch, rename, other = jax.random.split(jax.random.fold_in(key, APART), 4)
        shape, box = (copies, len(wanted.label)), centred(wanted.boxes)
        centre, side = box[:, :2], box[:, 2:]
        centre = centre + MOVED * side / 2 * jax.random.uniform(move, (*shape, 2), minval=-1)
        side = side * (1 + MOVED * jax.random.uniform(stretch, (*shape, 2), minval=-1))
        renamed = jax.random.bernoulli(rename, RENAMED, shape)
        label = jnp.where(renamed, jax.random.randint(other, shape, 0, classes), wanted.label)
        return cornered(jnp.concatenate([centre, side], axis=-1)), label

    return Noisy(*jax.vmap(one)(wanted, keys), wanted.valid)


def query_outputs(result: Prediction, head: DetrHead | YolosHead, found: int) -> dict[str, Array]:
    """The best `found` boxes of each image, best first, with `scores` and `kinds`; a score of 0 where there are no more.

    With a `DetrHead` a query may be found as several classes, as Deformable DETR has it; with a `YolosHead` as its best.
    """
    if isinstance(head, DetrHead):
        scores = jax.nn.sigmoid(result["classes"])
        kinds = jnp.broadcast_to(jnp.arange(scores.shape[2]), scores.shape)
    else:
        named = jax.nn.softmax(result["classes"])[..., :-1]
        scores, kinds = named.max(axis=-1, keepdims=True), named.argmax(axis=-1)[..., None]
    B, Q, K = scores.shape
    best, order = jax.lax.top_k(scores.reshape(B, -1), min(found, Q * K))
    boxes = jnp.take_along_axis(jnp.clip(result["boxes"], 0, 1), order[..., None] // K, axis=1)
    kinds = jnp.take_along_axis(kinds.reshape(B, -1), order, axis=1).astype(jnp.int32)
    spare = found - best.shape[1]
    return {
        "boxes": jnp.pad(boxes, ((0, 0), (0, spare), (0, 0))),
        "scores": jnp.pad(best, ((0, 0), (0, spare))),
        "kinds": jnp.pad(kinds, ((0, 0), (0, spare))),
    }
