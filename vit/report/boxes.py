"""Boxes on images: drawn into the pixels with class and score, and rows of truth beside what was found."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib import font_manager, rcParams
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from vit.report import masks
from vit.report.draw import BLUE, ORANGE, caption, grid, heading, save, show, text

CANVAS = 640  # pixels of the longer side of an image in a picture
NAMED = 24  # boxes; beyond that their names would hide the image
RED = (214, 39, 40)


class Drawing(NamedTuple):
    """An image (H, W, C) and the boxes to be drawn on it, y0 x0 y1 x1 in its pixels, with what is to be said of each.

    What is `odd` is filled with red, what is a `crowd` has a thin line and no words.
    """

    image: UInt8[np.ndarray, "H W C"]
    boxes: Float[np.ndarray, "n 4"]
    kinds: Int[np.ndarray, "n"]
    words: Sequence[str]
    odd: Bool[np.ndarray, "n"]
    crowd: Bool[np.ndarray, "n"]


class Row(NamedTuple):
    """An image with its true boxes and those that were found, and what is to be said of the ones and the others."""

    truth: Drawing
    found: Drawing
    missed: str
    wrong: str


def drawing(image: np.ndarray, boxes: np.ndarray, kinds: np.ndarray, words: Sequence[str] = (), **marks: np.ndarray) -> Drawing:
    """A `Drawing` in which nothing is odd or a crowd that isn't said to be."""
    none = np.zeros(len(kinds), bool)
    return Drawing(image, boxes, kinds, words or [""] * len(kinds), marks.get("odd", none), marks.get("crowd", none))


def drawn(it: Drawing, class_names: Sequence[str], size: int = 0) -> UInt8[np.ndarray, "H W 3"]:
    """The image with its boxes, in the classes' colours; what is odd on top, and then the first ones, which are the best.

    Args:
      it: what to draw.
      class_names: of the K classes; they decide about the colours.
      size: of letters, in pixels; by default what suits the image.
    """
    height, width = it.image.shape[:2]
    grey = it.image.mean(axis=-1).astype(np.uint8)
    picture = Image.fromarray(it.image if it.image.shape[-1] == 3 else grey).convert("RGB")
    pen, colours = ImageDraw.Draw(picture), masks.palette(class_names[:256])
    size = size or max(10, round(max(height, width) / 45))
    line = max(1, round(size / 7))
    for n in sorted(range(len(it.kinds)), key=lambda n: (it.odd[n], -n)):
        y0, x0, y1, x1 = it.boxes[n].tolist()
        where = (min(x0, width - 2), min(y0, height - 2), max(x1 - 1, x0 + 1), max(y1 - 1, y0 + 1))
        colour = tuple(colours[it.kinds[n] % 256].tolist())
        if it.odd[n]:
            left, top, right, bottom = map(round, where)
            part = picture.crop((left, top, right, bottom))
            picture.paste(Image.blend(part, Image.new("RGB", part.size, RED), 0.45), (left, top))
        pen.rectangle(where, outline=colour, width=1 if it.crowd[n] else line)
        if it.words[n] and not it.crowd[n]:
            _chip(pen, where, it.words[n], colour, size, (height, width))
    return np.asarray(picture)


def _chip(
    pen: ImageDraw.ImageDraw, where: tuple[float, ...], words: str, colour: tuple[int, ...], size: int, shape: tuple[int, int]
) -> None:
    """The words in a box's colour above its upper left corner, or below where there is no room."""
    font = _font(words, size)
    left, _, right, _ = font.getbbox(words)
    w, h = right - left + size // 2, size + size // 4
    x = max(0, min(where[0], shape[1] - w))
    y = where[1] - h if where[1] >= h else where[1]
    pen.rectangle((x, y, x + w, y + h), fill=colour)
    bright = np.dot(colour, (0.299, 0.587, 0.114)) > 140
    pen.text((x + size // 4 - left, y + size // 8), words, fill=(0, 0, 0) if bright else (255, 255, 255), font=font)


@functools.lru_cache(256)
def _font(words: str, size: int) -> Any:
    """The first of the fonts of all pictures that has every letter; matplotlib's own if none has."""
    paths = [font_manager.findfont(family) for family in rcParams["font.family"]]
    able = (path for path in paths if {ord(c) for c in words} <= _letters(path))
    return ImageFont.truetype(next(able, paths[0]), size)


@functools.lru_cache(16)
def _letters(path: str) -> set[int]:
    return set(FT2Font(path).get_charmap())


def rows(path: Any, those: Sequence[Row], class_names: Sequence[str], title: str) -> None:
    """Images with their true boxes, beside themselves with those that were found, two side by side, over a legend."""
    legend = masks.legend_height(class_names)
    figure, places = grid(2 * len(those), 2 * min(2, len(those)), 2.3, 1, 0.6, legend)
    for i, row in enumerate(those):
        both = (row.truth, f"truth: {row.missed}"), (row.found, f"found: {row.wrong}")
        for place, (it, words) in zip(places[2 * i :], both, strict=False):
            show(place, drawn(enlarged(it), class_names, CANVAS // 24))
            caption(place, words, ORANGE if it.odd.any() else BLUE)
    masks.legend_below(places[0], class_names, legend)
    heading(figure, title)
    save(figure, path)


def sheet(path: Any, those: Sequence[Drawing], class_names: Sequence[str], title: str) -> None:
    """Images with their boxes, four side by side, over a legend."""
    legend = masks.legend_height(class_names)
    figure, places = grid(len(those), min(4, len(those)), 2.3, 0, 0.5, legend)
    for place, it in zip(places, those, strict=True):
        show(place, drawn(enlarged(it), class_names, CANVAS // 24))
    masks.legend_below(places[0], class_names, legend)
    heading(figure, title)
    save(figure, path)


def enlarged(it: Drawing) -> Drawing:
    """An image with its boxes as large as it is in a picture, so that lines and letters are as thick on every one."""
    scale = CANVAS / max(it.image.shape[:2])
    height, width = (max(8, round(scale * side)) for side in it.image.shape[:2])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST if max(it.image.shape) < 64 else cv2.INTER_CUBIC
    image = cv2.resize(it.image, (width, height), interpolation=way).reshape(height, width, -1)
    factors = np.tile([height / it.image.shape[0], width / it.image.shape[1]], 2)
    words = it.words if len(it.kinds) <= NAMED else [""] * len(it.kinds)
    return it._replace(image=image, boxes=it.boxes * factors, words=words)


def told(class_names: Sequence[str], kinds: Int[np.ndarray, "n"], scores: Float[np.ndarray, "n"] | None = None) -> list[str]:
    """What is written on boxes: their classes, and how sure the model is."""
    names = [text(class_names[k], 14).replace(r"\$", "$") for k in kinds]
    return names if scores is None else [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]
