"""Image and boxes moved together: random crops at random scales for training (large-scale jitter), and four of them in one.

A crop is that of `vit.data.maskcrop`: whole pixels of the source become whole pixels of the result, and boxes go with them.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from vit.config import NOBODY, BoxData
from vit.data.boxforms import Boxes
from vit.data.maskcrop import Span, crop_image, filled, random_spans

LEAST_SIDE = 1.0  # pixels of the result; a box of less is dropped
CENTRE = 0.25, 0.75  # where the four of a mosaic meet, in shares of its height and width

Pair = tuple[UInt8[np.ndarray, "H W 3"], Boxes]


class View(NamedTuple):
    """What a model is shown: pixels, and its boxes (y0, x0, y1, x1) in pixels of it."""

    image: UInt8[np.ndarray, "h w 3"]
    corners: Float[np.ndarray, "n 4"]
    kinds: Int[np.ndarray, "n"]
    crowd: Bool[np.ndarray, "n"]


def jittered(pair: Pair, config: BoxData, rng: random.Random, size: Sequence[int] | None = None) -> View:
    """A crop of `config.size` at a random scale and place, or a smaller one of `size`, in which objects are as large."""
    image, boxes = pair
    y, x = random_spans(image.shape, config, rng, size)
    config = replace(config, size=tuple(size)) if size else config
    corners, kept = crop_boxes(boxes, y, x, image.shape[:2], config.visible)
    return View(crop_image(image, y, x, config), corners[kept], boxes.kinds[kept], boxes.crowd[kept])


def crop_boxes(
    boxes: Boxes, y: Span, x: Span, size: Sequence[int], visible: float
) -> tuple[Float[np.ndarray, "n 4"], Bool[np.ndarray, "n"]]:
    """Boxes of an image of this size in pixels of a crop, cut off at its edges, and which of them it keeps.

    Kept are those of which at least the share `visible` of the area is inside; of crowds whatever is.
    """
    out = boxes.corners * (*size, *size)
    for axis, span in enumerate((y, x)):
        out[:, axis::2] = span.first + (out[:, axis::2] - span.start) * ((span.last - span.first) / (span.stop - span.start))
    before = np.prod(out[:, 2:] - out[:, :2], axis=1)
    out = out.clip((y.first, x.first, y.first, x.first), (y.last, x.last, y.last, x.last))
    sides = out[:, 2:] - out[:, :2]
    share = np.prod(sides, axis=1) / before
    return out, (sides >= LEAST_SIDE).all(axis=1) & (boxes.crowd | (share >= visible))


def mosaic(pairs: Callable[[], Pair], config: BoxData, rng: random.Random) -> View:
    """Four crops around a random point (arXiv 2004.10934); `pairs()` gives one image after the other."""
    height, width = config.size
    at = [round(side * rng.uniform(*CENTRE)) for side in config.size]
    image, views = filled(config.size, config), []
    for top, bottom in ((0, at[0]), (at[0], height)):
        for left, right in ((0, at[1]), (at[1], width)):
            view = jittered(pairs(), config, rng, (bottom - top, right - left))
            image[top:bottom, left:right] = view.image
            views.append(view._replace(corners=view.corners + np.array([top, left, top, left])))
    corners, kinds, crowd = (np.concatenate([view[i] for view in views]) for i in (1, 2, 3))
    return View(image, corners, kinds, crowd)


def rows(boxes: Boxes, most: int) -> dict[str, np.ndarray]:
    """Boxes as an example has them, in `most` rows; of more the largest."""
    corners, kinds, crowd, area = boxes
    if len(kinds) > most:
        sizes = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
        some = np.sort(np.argsort(-sizes, kind="stable")[:most])
        corners, kinds, crowd, area = corners[some], kinds[some], crowd[some], area[some]
    n = len(kinds)
    out = {"boxes": np.zeros((most, 4), np.float32), "label": np.full(most, NOBODY, np.int32), "crowd": np.zeros(most, bool)}
    out["boxes"][:n], out["label"][:n], out["crowd"][:n] = corners, kinds, crowd
    return {**out, "area": np.pad(area, (0, most - n)).astype(np.float32)}
