"""Masks with classes (EoMT, Mask2Former arXiv 2112.01527): targets, matching and losses, and what becomes of predictions.

A prediction is a dict of `masks` (B, Q, h, w) and `classes` (B, Q, K + 1), logits both, the last class "no object". Glossary
for shapes: Q queries, M targets, K classes, P points, L predictions of one image (after each block, the last one last).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt, UInt8

from vit.config import EomtHead
from vit.models.eomt import Eomt, Prediction, annealed
from vit.models.layers import Keys
from vit.models.matching import match

MOST = 64  # targets of an image; of more, those with the largest areas
OBJECTS = 2**16  # numbers that an object can have
NOTHING, UNKNOWN = -1, -2  # pixels of no target, and pixels that count for nothing
APART = 2**16  # beyond the numbers that the model folds into its keys
OVERSAMPLED, IMPORTANT = 3, 0.75  # PointRend's (arXiv 1912.08193): points to choose from, and the share that is chosen
MASK, OVERLAP = 0.5, 0.8  # a pixel's least probability; the least share of a mask that other masks must leave


class Targets(NamedTuple):
    """What an image's masks should be, with room for M of them."""

    places: Int[Array, "*B H W"]  # each pixel's target, NOTHING, or UNKNOWN
    classes: Int[Array, "*B M"]
    valid: Bool[Array, "*B M"]


def targets(batch: dict[str, Array], head: EomtHead, classes: int) -> Targets:
    """The targets of a batch's `label` (B, H, W) and, unless output is semantic, `instance`: see `vit.tasks.masks`.

    Semantic: a mask for each class that is there. Panoptic: for each object, and for each class's pixels of no object.
    Instance: for each object alone. An object's number may not occur twice in an image, whatever the classes. At most
    min(Q, 64) (semantic: and K) masks an image, the largest ones; pixels of the others count for nothing.
    """
    room = min(head.queries, MOST, classes if head.output == "semantic" else MOST)
    instance = batch.get("instance") if head.output != "semantic" else None
    if instance is None:
        return jax.vmap(lambda label: _targets(label, jnp.zeros_like(label), classes, room, False))(batch["label"])
    alone = head.output == "instance"
    return jax.vmap(lambda label, objects: _targets(label, objects, classes, room, alone))(batch["label"], instance)


def _targets(label: UInt8[Array, "H W"], objects: UInt[Array, "H W"], classes: int, room: int, alone: bool) -> Targets:
    """`alone`: objects alone are targets."""
    end = classes + (OBJECTS if objects.dtype != jnp.uint8 else 256)
    kinds, number = label.astype(jnp.int32), objects.astype(jnp.int32)
    key = jnp.where(number > 0, classes + number, end if alone else kinds)
    key = jnp.where(kinds < classes, key, end)
    areas = jnp.zeros(end, jnp.int32).at[key].add(1, mode="drop")
    area, chosen = jax.lax.top_k(areas, room)
    valid = area > 0
    index = jnp.full(end, UNKNOWN).at[jnp.where(valid, chosen, end)].set(jnp.arange(room), mode="drop")
    places = index.at[key].get(mode="fill", fill_value=NOTHING)
    own = jnp.zeros(room, jnp.int32).at[jnp.where(places < 0, room, places)].max(kinds, mode="drop")
    return Targets(jnp.where(kinds < classes, places, UNKNOWN), own, valid)


def eomt_loss(model: Eomt, batch: dict[str, Array], head: EomtHead, classes: int, keys: Keys | None) -> Float[Array, "B"]:
    """Each example's loss in training; without keys that of the last prediction alone, made without masked attention.

    `progress` in the batch is the share of the training that is over: it decides how much of the attention is masked.
    """
    wanted = targets(batch, head, classes)
    if keys is None:
        return loss(model(batch["image"])[0], [], wanted, head)
    share = annealed(batch.get("progress", jnp.ones(())), model.joined)
    prediction, out = model(batch["image"], keys=keys, anneal=share)
    return loss(prediction, out["layers"], wanted, head, keys)


def loss(
    prediction: Prediction,
    earlier: Sequence[Prediction],
    wanted: Targets,
    head: EomtHead,
    keys: Keys | None = None,
) -> Float[Array, "B"]:
    """Each example's weighted loss, summed over its prediction and the `earlier` ones, each matched for itself.

    Without keys the points are always the same.
    """
    weights = {"classes": head.class_weight, "masks": head.mask_weight, "dice": head.dice_weight}
    parts = losses(prediction, earlier, wanted, head, keys)
    return sum((weights[name] * parts[name].sum(axis=1) for name in weights), jnp.zeros(len(wanted.classes)))


def losses(
    prediction: Prediction,
    earlier: Sequence[Prediction],
    wanted: Targets,
    head: EomtHead,
    keys: Keys | None = None,
) -> dict[str, Float[Array, "B L"]]:
    """Cross-entropy of the `classes`, binary cross-entropy of the `masks`, and `dice`, unweighted, of every prediction.

    As in transformers' EomtLoss but that the mean over masks is one of each image, not of the batch: so an example's loss
    doesn't depend on its neighbours. An image without targets has only a loss of its classes.
    """
    every = jax.tree.map(lambda *xs: jnp.stack(xs, axis=1), *earlier, prediction)
    B, L = every["classes"].shape[:2]
    keys = jnp.broadcast_to(jax.random.key(0), (B,)) if keys is None else keys
    many = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, APART), 2 * L))(keys)

    def over(function: Any) -> Any:
        """Over examples, and over predictions: those share their image's targets."""
        return jax.vmap(jax.vmap(function, in_axes=(0, None, 0, 0)), in_axes=(0, 0, 0, 0))

    nobody = jnp.zeros((B, L, 0), jnp.int32)
    cost = over(lambda p, t, _, key: costs(p, t, uniform(key, head.points), head))(every, wanted, nobody, many[:, :L])
    query = jax.vmap(match, in_axes=(1, None), out_axes=1)(cost, wanted.valid)
    return over(lambda p, t, q, key: _losses(p, t, q, head, key))(every, wanted, query, many[:, L:])


def costs(
    prediction: dict[str, Float[Array, "..."]], wanted: Targets, points: Float[Array, "P 2"], head: EomtHead
) -> Float[Array, "Q M"]:
    """What it would cost that a query answers for a target, by the same points of all masks; no gradient passes."""
    prediction = jax.lax.stop_gradient(prediction)
    masks, M = prediction["masks"], len(wanted.classes)
    where, weight = corners(points, (masks.shape[1], masks.shape[2]))
    x = (masks.reshape(len(masks), -1)[:, where] * weight).sum(axis=-1)  # (Q, P)
    inside, known = _asked(wanted.places, points, jnp.arange(M)[:, None, None])
    total = jnp.maximum(known[0].sum(), 1e-6)
    cross = (jnp.sum(jax.nn.softplus(x) * known[0], axis=1)[:, None] - x @ inside.T) / total
    p = jax.nn.sigmoid(x)
    dice = 1 - (2 * p @ inside.T + 1) / ((p @ known[0])[:, None] + inside.sum(axis=1) + 1)
    named = jax.nn.softmax(prediction["classes"])[:, wanted.classes]
    return head.mask_weight * cross + head.dice_weight * dice - head.class_weight * named


def _losses(
    prediction: dict[str, Float[Array, "..."]],
    wanted: Targets,
    query: Int[Array, "M"],
    head: EomtHead,
    key: Key[Array, ""],
) -> dict[str, Float[Array, ""]]:
    masks, K = prediction["masks"][jnp.maximum(query, 0)], prediction["classes"].shape[1] - 1  # of the targets, in their order
    points = uncertain(jax.lax.stop_gradient(masks), head.points, key)
    cross, dice = mask_losses(masks, wanted.places, points)
    count = jnp.maximum(wanted.valid.sum(), 1)
    hit = query == jnp.arange(len(prediction["classes"]))[:, None]  # (Q, M); a target that isn't valid hits none
    target = jnp.where(hit.any(axis=1), (hit * wanted.classes).sum(axis=1), K)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(prediction["classes"]), target[:, None], axis=1)[:, 0]
    weight = jnp.where(target == K, head.no_object, 1.0)
    return {
        "classes": (weight * nll).sum() / jnp.maximum(weight.sum(), 1e-6),
        "masks": jnp.where(wanted.valid, cross, 0).sum() / count,
        "dice": jnp.where(wanted.valid, dice, 0).sum() / count,
    }


def mask_losses(
    masks: Float[Array, "M h w"], places: Int[Array, "H W"], points: Float[Array, "M P 2"]
) -> tuple[Float[Array, "M"], Float[Array, "M"]]:
    """Binary cross-entropy and dice loss of masks that answer for the targets in order, each at its own points."""
    x = sampled(masks, points)
    inside, known = _asked(places, points, jnp.arange(len(masks))[:, None, None])
    cross = (jax.nn.softplus(x) * known - x * inside).sum(axis=1) / jnp.maximum(known.sum(axis=1), 1e-6)
    p = jax.nn.sigmoid(x)
    dice = 1 - (2 * (p * inside).sum(axis=1) + 1) / ((p * known).sum(axis=1) + inside.sum(axis=1) + 1)
    return cross, dice


def _asked(
    places: Int[Array, "H W"], points: Float[Array, "*M P 2"], target: Int[Array, "m 1 1"]
) -> tuple[Float[Array, "m P"], Float[Array, "m P"]]:
    """How much of each point is inside a target's mask, and how much of it is known, both bilinear."""
    where, weight = corners(points, (places.shape[0], places.shape[1]))
    at = places.reshape(-1)[where]
    known = jnp.where(at != UNKNOWN, weight, 0).sum(axis=-1) / weight.sum(axis=-1)  # beyond the border nobody knows more
    inside = jnp.where(at == target, weight, 0).sum(axis=-1)
    return inside, jnp.broadcast_to(known, inside.shape)


def corners(points: Float[Array, "*P 2"], size: tuple[int, int]) -> tuple[Int[Array, "*P 4"], Float[Array, "*P 4"]]:
    """The four pixels around points (y, x) in [0, 1], by their number row by row, and their weights in between.

    A pixel beyond the border weighs nothing, as PyTorch's `grid_sample` has it.
    """
    at = points * jnp.asarray(size) - 0.5
    low = jnp.floor(at)
    places, weights = [], []
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        corner = low + jnp.asarray((dy, dx))
        weight = jnp.prod(1 - jnp.abs(at - corner), axis=-1)
        there = jnp.all((corner >= 0) & (corner < jnp.asarray(size)), axis=-1)
        y, x = jnp.moveaxis(jnp.clip(corner, 0, jnp.asarray(size) - 1).astype(jnp.int32), -1, 0)
        places.append(y * size[1] + x)
        weights.append(jnp.where(there, weight, 0))
    return jnp.stack(places, axis=-1), jnp.stack(weights, axis=-1)


def sampled(masks: Float[Array, "M h w"], points: Float[Array, "M P 2"]) -> Float[Array, "M P"]:
    """Each mask at its own points, bilinear."""
    where, weight = corners(points, (masks.shape[1], masks.shape[2]))
    flat = masks.reshape(len(masks), 1, -1)
    return (jnp.take_along_axis(flat, where.reshape(len(masks), 1, -1), axis=2).reshape(where.shape) * weight).sum(axis=-1)


def uniform(key: Key[Array, ""], count: int) -> Float[Array, "P 2"]:
    """Points anywhere."""
    return jax.random.uniform(key, (count, 2))


def uncertain(masks: Float[Array, "M h w"], count: int, key: Key[Array, ""]) -> Float[Array, "M P 2"]:
    """For each mask its own points: three quarters are the least sure of three times as many, the others anywhere."""
    first, second = jax.random.split(key)
    important = int(IMPORTANT * count)
    points = jax.random.uniform(first, (len(masks), OVERSAMPLED * count, 2))
    best = jax.lax.top_k(-jnp.abs(sampled(masks, points)), important)[1]
    rest = jax.random.uniform(second, (len(masks), count - important, 2))
    return jnp.concatenate([jnp.take_along_axis(points, best[..., None], axis=1), rest], axis=1)


def semantic(prediction: Prediction) -> Float[Array, "B h w K"]:
    """How much of each class is at each place: over the queries, probability of the class times that of the mask, summed."""
    named = jax.nn.softmax(prediction["classes"])[..., :-1]
    return jnp.einsum("bqk,bqhw->bhwk", named, jax.nn.sigmoid(prediction["masks"]))


def panoptic(
    prediction: dict[str, Float[Array, "..."]],
    head: EomtHead,
    stuff: Sequence[int] = (),
    inside: Bool[Array, "H W"] | None = None,
) -> dict[str, Array]:
    """One image cut into segments, as transformers does it.

    Args:
      prediction: `masks` (Q, H, W), resized to the image, and `classes` (Q, K + 1).
      head: tells the least score.
      stuff: classes of which all is one segment.
      inside: the pixels that are of the image; others become -1, and count for nothing.

    Returns:
      `segments` (H, W), each pixel's segment by the number of its query, or -1; and of each query `classes`, `scores` and
      `kept` (Q,), which queries have a segment of their own.
    """
    scores, classes = _named(prediction["classes"])
    K, Q = prediction["classes"].shape[1] - 1, len(scores)
    candidates = (classes != K) & (scores > head.threshold)
    p = jax.nn.sigmoid(prediction["masks"])
    winner = jnp.argmax(jnp.where(candidates[:, None, None], scores[:, None, None] * p, -1), axis=0)
    inside = jnp.ones(winner.shape, bool) if inside is None else inside
    sure = (jnp.take_along_axis(p, winner[None], axis=0)[0] >= MASK) & inside
    won, final = (jnp.zeros(Q, jnp.int32).at[winner].add(x.astype(jnp.int32)) for x in (inside, sure))
    whole = jnp.sum((p >= MASK) & inside, axis=(1, 2))
    kept = candidates & (final > 0) & (won / jnp.maximum(whole, 1) > OVERLAP)
    # Of a class that is stuff, the first query that is kept has all.
    same = (classes[:, None] == classes) & kept & jnp.isin(classes, jnp.asarray(stuff, jnp.int32))[:, None]
    own = jnp.where(same.any(axis=1), jnp.argmax(same, axis=1), jnp.arange(Q))
    segments = jnp.where(kept[winner] & sure, own[winner], -1)
    return {"segments": segments, "classes": classes, "scores": scores, "kept": kept & (own == jnp.arange(Q))}


def instances(
    prediction: dict[str, Float[Array, "..."]], head: EomtHead, inside: Bool[Array, "H W"] | None = None
) -> dict[str, Array]:
    """One image's objects, as transformers has them: `masks` (Q, H, W) that may overlap, `classes`, `scores` and `kept` (Q,).

    A score is the class's probability times the mean of the mask's; `kept` are those of at least the head's threshold, and
    `segments` (H, W) shows them, the later over the earlier. Arguments as of `panoptic`.
    """
    named = jax.nn.softmax(prediction["classes"])[:, :-1]
    masks = prediction["masks"] > 0
    masks = masks if inside is None else masks & inside
    area = masks.sum(axis=(1, 2))
    certain = jnp.sum(jax.nn.sigmoid(prediction["masks"]) * masks, axis=(1, 2)) / (area + 1e-6)
    scores = named.max(axis=1) * certain
    kept = (area > 0) & (scores >= head.threshold)
    numbers = jnp.arange(len(scores))[:, None, None]
    segments = jnp.where(masks & kept[:, None, None], numbers, -1).max(axis=0)
    return {"masks": masks, "classes": named.argmax(axis=1), "scores": scores, "kept": kept, "segments": segments}


def _named(classes: Float[Array, "Q C"]) -> tuple[Float[Array, "Q"], Int[Array, "Q"]]:
    p = jax.nn.softmax(classes)
    return p.max(axis=1), p.argmax(axis=1)
