"""COCO's annotations as pixels: polygons by pycocotools, run lengths by our own few lines, which check every number."""

import json
import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt16

from vit.data.maskfiles import BadMask

MOST_POINTS = 1_000_000  # of a polygon


class Segment(NamedTuple):
    """One annotation: polygons, or run lengths down the columns, of a class's id and an object's number."""

    polygons: list[list[float]] | None
    runs: str | list[int] | None
    number: int = 0
    object: int = 0


def quoted(value: Any) -> str:
    """A value as it stands in a JSON."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:39] + "…"


def as_segment(annotation: dict[str, Any], size: tuple[int, int]) -> Segment | str:
    """The segment of an annotation in an image of this height and width, or what is wrong with it in words."""
    shape, (height, width) = annotation.get("segmentation"), size
    if isinstance(shape, dict):
        told, runs = shape.get("size"), shape.get("counts")
        if not isinstance(told, list) or told != [height, width]:
            return f"its run lengths are of size {quoted(told)}, the image's is [{height}, {width}]"
        if isinstance(runs, list) and all(type(n) is int and n >= 0 for n in runs):
            total = sum(runs)
        elif isinstance(runs, str):
            total = height * width  # only reading them shows
        else:
            return "its run lengths are no list of numbers and no text"
        if total != height * width:
            return f"its run lengths add up to {total}, and the image has {height * width} pixels"
        return Segment(None, runs)
    if not isinstance(shape, list) or not shape:
        return "it has no polygon and no run lengths"
    for polygon in shape:
        if not isinstance(polygon, list) or len(polygon) % 2 or not all(type(x) in (int, float) for x in polygon):
            return "its polygon is not a list of x and y"
        if len(polygon) < 6:
            return f"its polygon has {len(polygon) // 2} points, and needs three"
        reach = height + width  # some lie a little outside
        if len(polygon) > MOST_POINTS or not all(math.isfinite(x) and -reach <= x <= 2 * reach for x in polygon):
            return "its polygon leads far out of the image"
    return Segment(shape, None)


def painted(segments: list[Segment], size: tuple[int, int]) -> tuple[UInt16[np.ndarray, "H W"], UInt16[np.ndarray, "H W"]]:
    """Ids and objects of an image: 0 where there is none. Raises `BadImage` if run lengths are damaged."""
    from pycocotools import mask

    tools: Any = mask

    ids, objects = np.zeros(size, np.uint16), np.zeros(size, np.uint16)
    coded = []
    for order, segment in enumerate(segments):
        if segment.polygons is not None:
            runs = counts(tools.merge(tools.frPyObjects(segment.polygons, *size))["counts"].decode("latin-1"), size)
        else:
            runs = counts(segment.runs or [], size)
        coded.append((segment.object > 0, -int(runs[1::2].sum()), order, segment, runs))
    for _, _, _, segment, runs in sorted(coded, key=lambda x: x[:3]):
        where = covered(runs, size)
        ids[where], objects[where] = segment.number, segment.object
    return ids, objects


def counts(runs: str | list[int], size: tuple[int, int]) -> Int[np.ndarray, "n"]:
    """The lengths of runs of zeros and ones in turn; COCO's text has five bits a letter, from the fourth on as differences."""
    if not isinstance(runs, str):
        return np.array(runs, np.int64)
    lengths: list[int] = []
    value = shift = 0
    for letter in runs.encode("latin-1", "replace"):
        letter -= 48
        if not 0 <= letter < 64 or shift > 30:
            raise BadMask("the run lengths of an annotation are damaged", "mend the annotation, or remove it")
        value |= (letter & 31) << shift
        shift += 5
        if letter & 32:
            continue
        if letter & 16:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    total = sum(lengths)
    if shift or total != size[0] * size[1] or min(lengths, default=0) < 0:
        what = f"the run lengths of an annotation add up to {total}, and the image has {size[0] * size[1]} pixels"
        raise BadMask(what, "mend the annotation, or remove it")
    return np.array(lengths, np.int64)


def covered(runs: Int[np.ndarray, "n"], size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Where run lengths say one."""
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(size[1], size[0]).T
