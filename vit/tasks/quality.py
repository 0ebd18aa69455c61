"""How good segments are: panoptic quality as sums, mask AP from what was kept of every example. NumPy, on the host.

Both are what COCO's own programs compute (panopticapi, arXiv 1801.00868; pycocotools). A segment of the truth is all pixels of
one class and one object's number (0: of none); void is a class number beyond the classes.
"""

import contextlib
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt, UInt8
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

tools: Any = mask  # its types are declared too narrowly
evaluator: Any = COCOeval
OBJECTS = 2**16  # numbers that an object can have
FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # of COCOeval's twelve, the first six


def panoptic_sums(
    segments: Int[np.ndarray, "H W"],
    classes: Int[np.ndarray, "Q"],
    label: UInt8[np.ndarray, "H W"],
    instance: UInt[np.ndarray, "H W"],
    K: int,
) -> Float[np.ndarray, "4 K"]:
    """Of each class in one image: the intersections over unions of matched pairs, pairs, segments too many, segments missed.

    A predicted and a true segment of one class match if their intersection is over half their union. Pixels of void in the
    truth don't count in a union, and a segment that is more than half void isn't one too many.

    Args:
      segments: each pixel's predicted segment, -1 for none.
      classes: of the predicted segments.
      label: each pixel's true class; K and more are void.
      instance: each pixel's true object.
      K: classes.
    """
    sums = np.zeros((4, K))
    truth = np.where(label < K, label.astype(np.int64) * OBJECTS + instance, -1)
    known, true_area = np.unique(truth, return_counts=True)
    ours, area = np.unique(segments, return_counts=True)
    rows, columns = np.searchsorted(known, truth.ravel()), np.searchsorted(ours, segments.ravel())
    common = np.bincount(rows * len(ours) + columns, minlength=len(known) * len(ours)).reshape(len(known), len(ours))
    void = common[known == -1].sum(axis=0)  # of each predicted segment
    same = (known[:, None] // OBJECTS == classes[ours]) & (known[:, None] >= 0) & (ours >= 0)
    iou = np.where(same, common / np.maximum(true_area[:, None] + area - common - void, 1), 0)
    row, column = np.nonzero(iou > 0.5)  # at most one in each row and column
    kinds = known[row] // OBJECTS
    np.add.at(sums[0], kinds, iou[row, column])
    np.add.at(sums[1], kinds, 1)
    over = (ours >= 0) & (2 * void <= area)
    over[column] = False
    np.add.at(sums[2], classes[ours[over]], 1)
    missed = known >= 0
    missed[row] = False
    np.add.at(sums[3], known[missed] // OBJECTS, 1)
    return sums


def panoptic_quality(sums: Float[np.ndarray, "4 K"], things: Bool[np.ndarray, "K"] | None = None) -> dict[str, Any]:
    """Figures of the sums over all images: `pq`, `sq` (how well matched segments fit), `rq` (how many match), `pq_per_class`.

    Means over the classes that truth or prediction have; None where they have none. With `things` also `pq_things`,
    `pq_stuff`.
    """
    iou, hits, over, missed = sums
    trials = hits + (over + missed) / 2
    present = trials > 0
    pq, sq, rq = iou / np.maximum(trials, 0.5), iou / np.maximum(hits, 1), hits / np.maximum(trials, 0.5)

    def mean(x: Float[np.ndarray, "K"], which: Bool[np.ndarray, "K"]) -> float | None:
        return float(x[which].mean()) if which.any() else None

    figures: dict[str, Any] = {name: mean(x, present) for name, x in (("pq", pq), ("sq", sq), ("rq", rq))}
    if things is not None:
        figures |= {"pq_things": mean(pq, present & things), "pq_stuff": mean(pq, present & ~things)}
    return figures | {"pq_per_class": [float(x) if here else None for x, here in zip(pq, present, strict=True)]}


def true_objects(label: UInt8[np.ndarray, "H W"], instance: UInt[np.ndarray, "H W"], K: int) -> list[dict[str, Any]]:
    """What `mask_ap` wants to know of an image's objects, as plain JSON values: pixels of void and of no object aside."""
    key = np.where((label < K) & (instance > 0), label.astype(np.int64) * OBJECTS + instance, 0)
    return [{"class": int(k // OBJECTS), **encoded(key == k)} for k in np.unique(key[key > 0])]


def predicted_objects(
    masks: Bool[np.ndarray, "Q H W"],
    classes: Int[np.ndarray, "Q"],
    scores: Float[np.ndarray, "Q"],
    most: int = 100,
) -> list[dict[str, Any]]:
    """The same of what was predicted: the `most` masks of the best scores, empty ones aside."""
    best = np.argsort(-scores, kind="stable")
    best = best[masks[best].any(axis=(1, 2))][:most]
    return [{"class": int(classes[q]), "score": float(scores[q]), **encoded(masks[q])} for q in best]


def encoded(there: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """A mask as COCO's run lengths."""
    code = tools.encode(np.asfortranarray(there, np.uint8))
    return {"size": [int(n) for n in code["size"]], "counts": code["counts"].decode("ascii")}


def mask_ap(truth: Sequence[Sequence[dict[str, Any]]], predicted: Sequence[Sequence[dict[str, Any]]], K: int) -> dict[str, Any]:
    """COCO's mask AP over all images, each with its `true_objects` and `predicted_objects`; None where there is no object.

    `ap` is the mean over IoU 0.5 to 0.95 and the classes that the truth has, `ap50` and `ap75` at one IoU, `ap_small` and so on
    of objects below 32², up to 96² and above, in pixels of the image's own size.
    """
    sizes = [next((x["size"] for x in (*t, *p)), (1, 1)) for t, p in zip(truth, predicted, strict=True)]
    ours, theirs = ([_annotation(i, x) for i, every in enumerate(those) for x in every] for those in (predicted, truth))
    judge = judged(theirs, ours, sizes, K, "segm")
    figures = {name: known(x) for name, x in zip(FIGURES, judge.stats, strict=False)}
    precision = judge.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class; objects of any size, up to 100 an image
    return figures | {"ap_per_class": [mean_precision(x) for x in precision.T]}


def judged(
    truth: Sequence[dict[str, Any]], predicted: Sequence[dict[str, Any]], sizes: Iterable[Any], K: int, kind: str
) -> Any:
    """COCO's evaluator when it is done.

    Args:
      truth, predicted: annotations as COCO's JSON has them, whose `image_id` is the image's place; they get their `id` here.
      sizes: height and width of every image, those without annotations too.
      K: classes, whose numbers are their `category_id`.
      kind: what is compared, "segm" or "bbox".
    """
    images = [{"id": i, "height": int(h), "width": int(w)} for i, (h, w) in enumerate(sizes)]
    sets = []
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress and a table
        for those in (truth, predicted):
            numbered = [{"id": number, **x} for number, x in enumerate(those, 1)]  # 0 means no match to pycocotools
            sets.append(COCO())
            sets[-1].dataset = {"images": images, "annotations": numbered, "categories": [{"id": k} for k in range(K)]}
            sets[-1].createIndex()
        judge = evaluator(*sets, kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


def mean_precision(precision: Float[np.ndarray, "..."]) -> float | None:
    """The mean of what COCO's evaluator says of a class; None if the truth hasn't got the class, where it says -1."""
    there = precision[precision > -1]
    return float(there.mean()) if there.size else None


def _annotation(image: int, x: dict[str, Any]) -> dict[str, Any]:
    code = {"size": x["size"], "counts": x["counts"]}
    score = {"score": x["score"]} if "score" in x else {}
    area = float(tools.area(code))
    return {"image_id": image, "category_id": x["class"], "segmentation": code, "area": area, "iscrowd": 0, **score}


def known(x: float) -> float | None:
    """A figure of COCO's evaluator; None for its -1: there is nothing to judge."""
    return None if x < 0 else float(x)
