"""How good boxes are: COCO's figures, the threshold of the best F-score, curves, confusions. NumPy, on the host.

Of every image there is `truth`, a dict of `boxes` (n, 4), y0 x0 y1 x1 in pixels of the image's own size, with `kinds`, `crowd`
and `area` (n,), and `found`, a dict of `boxes`, `kinds` and `scores`. What lies in a crowd is neither right nor wrong.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from vit.tasks import quality

Boxes = Mapping[str, np.ndarray]

FIGURES = (*quality.FIGURES, "ar1", "ar10", "ar100")  # of COCOeval's twelve, the first nine
SIZES = ("ap_small", "ap_medium", "ap_large")
LEAST = 0.5  # IoU of a pair
UNCHOSEN = 0.3  # the threshold where no validation has chosen one


class Threshold(NamedTuple):
    """A score from which on boxes count, and what comes of it, all classes together."""

    threshold: float
    precision: float
    recall: float
    f1: float


class Verdict(NamedTuple):
    """What became of an image's boxes: of each found one the true box that it is, -1 for none; which of them don't count."""

    pair: Int[np.ndarray, "n"]
    ignored: Bool[np.ndarray, "n"]


def box_figures(
    truth: Sequence[Boxes], found: Sequence[Boxes], sizes: Iterable[Any], class_names: Sequence[str]
) -> dict[str, Any]:
    """COCO's figures of all images, by pycocotools, and the threshold of the best F-score.

    `ap` is the mean over IoU 0.5 to 0.95 and the classes that the truth has, `ap50` and `ap75` at one IoU, `ap_small` and so on
    of objects whose area is below 32², up to 96² and above, None where there are none; `ar1`, `ar10`, `ar100` the mean recall
    with so many boxes of an image.

    Args:
      truth, found: of every image, those without boxes too.
      sizes: of the images, height and width.
      class_names: of the K classes.
    """
    K = len(class_names)
    judge = quality.judged(_annotations(truth), _annotations(found), sizes, K, "bbox")
    figures: dict[str, Any] = {name: quality.known(x) for name, x in zip(FIGURES, judge.stats, strict=False)}
    figures = {name: x if name in SIZES else x or 0.0 for name, x in figures.items()}
    precision = judge.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class; objects of any size, up to 100 an image
    for name, those in (("ap_per_class", precision), ("ap50_per_class", precision[:1])):
        figures[name] = {kind: quality.mean_precision(those[:, :, k]) for k, kind in enumerate(class_names)}
    return figures | best_threshold(truth, found)._asdict() | {"boxes": _countable(truth)}


def score(figures: Mapping[str, Any]) -> tuple[float, float, float]:
    """What makes one checkpoint better than another, AP and then AP50; and the threshold, which is kept with them."""
    return figures["ap"], figures["ap50"], figures["threshold"]


def chosen_threshold(scores: Mapping[str, Sequence[float]], step: int) -> float:
    """What the last validation up to a step chose, of a checkpoint's meta["scores"], where each step has its `score`."""
    known = [int(s) for s, values in scores.items() if int(s) <= step and len(values) > 2]
    return float(scores[str(max(known))][2]) if known else UNCHOSEN


def best_threshold(truth: Sequence[Boxes], found: Sequence[Boxes]) -> Threshold:
    """The threshold of the best F-score over the boxes of all classes, half-way to the next lower score.

    Of equal ones the highest, which leaves the fewest boxes. If no box is right, `UNCHOSEN`.
    """
    scores, _, right = _counted(truth, found)
    total, hits = _countable(truth), np.cumsum(right)
    last = (
        np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else np.zeros(0, int)
    )  # equal ones go together
    f1 = 2 * hits[last] / np.maximum(last + 1 + total, 1)
    if not f1.any():
        return Threshold(UNCHOSEN, 0.0, 0.0, 0.0)
    best = int(f1.argmax())
    i = last[best]
    lower = float(scores[i + 1]) if i + 1 < len(scores) else 0.0
    return Threshold((float(scores[i]) + lower) / 2, float(hits[i] / (i + 1)), float(hits[i] / total), float(f1[best]))


def curves(truth: Sequence[Boxes], found: Sequence[Boxes], K: int) -> Float[np.ndarray, "K 101"]:
    """Precision of each class at recall 0, 0.01 … 1 and IoU 0.5, as COCO has it: the best at that recall or a higher one.

    0 where a class doesn't get that far, NaN where the truth hasn't got it.
    """
    _, kinds, right = _counted(truth, found)
    precision = np.full((K, 101), np.nan)
    for k in range(K):
        total = _countable(truth, k)
        if total:
            hits = np.cumsum(right[kinds == k])
            best = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
            at = np.searchsorted(hits / total, np.linspace(0, 1, 101))
            precision[k] = np.append(best, 0)[at]
    return precision


def confusion(truth: Sequence[Boxes], found: Sequence[Boxes], K: int, threshold: float) -> Int[np.ndarray, "K1 K1"]:
    """Boxes by true class (rows) and found class (columns), the last of both for none: found too much, and missed.

    What is left of truth and found boxes when those of one class are paired, is paired across the classes.
    """
    matrix = np.zeros((K + 1, K + 1), int)
    for t, f in zip(truth, found, strict=True):
        f = above(f, threshold)
        pair = verdict(t, f)
        others = mistaken(t, f, pair)
        partner = np.where(pair.pair >= 0, pair.pair, others)
        rows = np.append(t["kinds"], K)[partner]  # -1: none
        np.add.at(matrix, (rows[~pair.ignored], f["kinds"][~pair.ignored]), 1)
        matrix[:K, K] += np.bincount(t["kinds"][missed(t, partner)], minlength=K)
    return matrix


def above(found: Boxes, threshold: float) -> dict[str, np.ndarray]:
    """The found boxes that count at a threshold."""
    good = found["scores"].astype(float) >= threshold
    return {name: x[good] for name, x in found.items()}


def missed(truth: Boxes, pair: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "m"]:
    """Which true boxes, crowds aside, are nobody's pair."""
    return ~truth["crowd"] & ~np.isin(np.arange(len(truth["kinds"])), pair)


def verdict(truth: Boxes, found: Boxes) -> Verdict:
    """Pairs found with true boxes of their class as COCO does: the best score first, each with the free one that fits best."""
    pair, ignored = np.full(len(found["kinds"]), -1), np.zeros(len(found["kinds"]), bool)
    for k in np.unique(found["kinds"]):
        ours, theirs = _by_score(found, found["kinds"] == k), np.flatnonzero(truth["kinds"] == k)
        crowd = truth["crowd"][theirs]
        overlap = ious(found["boxes"][ours], truth["boxes"][theirs], crowd)
        pair[ours] = np.append(theirs, -1)[_greedy(overlap, ~crowd)]
        ignored[ours] = (pair[ours] < 0) & (overlap[:, crowd] >= LEAST).any(axis=1)
    return Verdict(pair, ignored)


def mistaken(truth: Boxes, found: Boxes, known: Verdict) -> Int[np.ndarray, "n"]:
    """Of each found box without a pair, the missed box of another class that it lies on, -1 for none."""
    ours = _by_score(found, (known.pair < 0) & ~known.ignored)
    theirs = np.flatnonzero(missed(truth, known.pair))
    overlap = ious(found["boxes"][ours], truth["boxes"][theirs], np.zeros(len(theirs), bool))
    others = np.full(len(found["kinds"]), -1)
    others[ours] = np.append(theirs, -1)[_greedy(overlap, np.ones(len(theirs), bool))]
    return others


def ious(
    found: Float[np.ndarray, "n 4"], truth: Float[np.ndarray, "m 4"], crowd: Bool[np.ndarray, "m"]
) -> Float[np.ndarray, "n m"]:
    """Intersections over unions; of a crowd, over the found box."""
    if not len(found) or not len(truth):
        return np.zeros((len(found), len(truth)))
    return np.asarray(quality.tools.iou(_corner_and_sides(found), _corner_and_sides(truth), crowd.astype(np.uint8)))


def to_coco(
    truth: Sequence[Boxes],
    sizes: Iterable[Any],
    class_names: Sequence[str],
    image_ids: Sequence[int | str],
    class_ids: Sequence[int],
    files: Sequence[str] = (),
) -> dict[str, Any]:
    """The true boxes of images as COCO's JSON: `images`, `categories`, `annotations`.

    Args:
      truth: of every image.
      sizes, image_ids, files: of the images; files are optional.
      class_names, class_ids: of the K classes.
    """
    named = [{"file_name": name} for name in files] or [{}] * len(truth)
    images = zip(image_ids, sizes, named, strict=True)
    return {
        "images": [{"id": i, "height": int(h), "width": int(w), **x} for i, (h, w), x in images],
        "categories": [{"id": k, "name": name} for k, name in zip(class_ids, class_names, strict=True)],
        "annotations": [{"id": n, **x} for n, x in enumerate(_annotations(truth, image_ids, class_ids), 1)],
    }


def to_results(found: Sequence[Boxes], image_ids: Sequence[int | str], class_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The found boxes of images as COCO wants results: what pycocotools' `loadRes` reads beside `to_coco`."""
    return [{k: x[k] for k in ("image_id", "category_id", "bbox", "score")} for x in _annotations(found, image_ids, class_ids)]


def _annotations(
    every: Sequence[Boxes], image_ids: Sequence[int | str] = (), class_ids: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """All boxes as COCO's JSON has them, images and classes by their ids, or else by their numbers."""
    rows = []
    for i, those in enumerate(every):
        boxes, kinds = _corner_and_sides(those["boxes"]), those["kinds"]
        areas = those["area"] if "area" in those else boxes[:, 2] * boxes[:, 3]
        for n, (box, kind, area) in enumerate(zip(boxes.tolist(), kinds.tolist(), np.asarray(areas).tolist(), strict=True)):
            crowd = int(those["crowd"][n]) if "crowd" in those else 0
            given = {"score": float(those["scores"][n])} if "scores" in those else {}
            ids = {"image_id": image_ids[i] if image_ids else i, "category_id": class_ids[kind] if class_ids else kind}
            rows.append({**ids, "bbox": box, "area": area, "iscrowd": crowd, **given})
    return rows


def _corner_and_sides(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    """y0 x0 y1 x1 as COCO's x y width height."""
    y0, x0, y1, x1 = boxes.astype(float).reshape(-1, 4).T
    return np.stack([x0, y0, x1 - x0, y1 - y0], axis=1)


def _greedy(overlap: Float[np.ndarray, "n m"], free: Bool[np.ndarray, "m"]) -> Int[np.ndarray, "n"]:
    """Of each row, one after the other, the free column of the largest overlap, of equals the last; -1 if it is too little."""
    free, taken = free.copy(), np.full(len(overlap), -1)
    for i in np.flatnonzero((overlap >= LEAST).any(axis=1)):
        row = np.where(free, overlap[i], 0)
        best = len(row) - 1 - int(row[::-1].argmax())
        if row[best] >= LEAST:
            taken[i], free[best] = best, False
    return taken


def _by_score(found: Boxes, which: Bool[np.ndarray, "n"]) -> Int[np.ndarray, "_"]:
    those = np.flatnonzero(which)
    return those[np.argsort(-found["scores"][those], kind="stable")]


def _countable(truth: Sequence[Boxes], k: int | None = None) -> int:
    """True boxes, of a class if one is given, crowds aside."""
    return sum(int(np.sum(~t["crowd"] & ((t["kinds"] == k) if k is not None else True))) for t in truth)


def _counted(truth: Sequence[Boxes], found: Sequence[Boxes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores and classes of all found boxes that count, and whether they are right, the best score first."""
    verdicts = [verdict(t, f) for t, f in zip(truth, found, strict=True)]
    if not verdicts:
        return np.zeros(0), np.zeros(0, int), np.zeros(0, bool)
    counts = ~np.concatenate([v.ignored for v in verdicts])
    scores, kinds = (np.concatenate([f[name] for f in found])[counts] for name in ("scores", "kinds"))
    right = np.concatenate([v.pair for v in verdicts])[counts] >= 0
    order = np.argsort(-scores, kind="stable")
    return scores[order], kinds[order], right[order]
