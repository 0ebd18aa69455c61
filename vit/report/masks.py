"""Masks in colour: a palette, overlays, errors, and rows of image, truth, prediction and error."""

import colorsys
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib.patches import Rectangle

from vit.config import VOID
from vit.report.draw import BLUE, INK, ORANGE, Place, caption, grid, heading, save, show, text

MOST = 512  # pixels of a picture's longer side
LEGEND = 40  # classes; beyond that there is no room for names


class Row(NamedTuple):
    """An image (H, W, 3) with its masks (H, W), and what is to be said of it; without `truth` only the prediction is shown."""

    image: UInt8[np.ndarray, "H W 3"]
    truth: UInt8[np.ndarray, "H W"]
    predicted: UInt8[np.ndarray, "H W"]
    words: str


def palette(class_names: Sequence[str]) -> UInt8[np.ndarray, "256 3"]:
    """A colour for every class, those of neighbouring numbers far apart; a background is dark, void grey."""
    colours = np.full((256, 3), 128, np.uint8)
    for k, name in enumerate(class_names):
        hue, light = (k * 0.61803398875 + 0.02) % 1, (0.52, 0.36, 0.68)[k % 3]
        colours[k] = np.round(255 * np.array(colorsys.hls_to_rgb(hue, light, (0.85, 0.6)[k // 3 % 2])))
        if name.lower() in ("background", "bg", "_background_"):
            colours[k] = 24
    return colours


def overlay(
    image: UInt8[np.ndarray, "H W C"], mask: UInt8[np.ndarray, "H W"], colours: UInt8[np.ndarray, "256 3"], share: float = 0.6
) -> UInt8[np.ndarray, "H W 3"]:
    """The mask's colours over the grey image; void leaves the image alone."""
    grey = np.repeat(image.astype(np.float32).mean(axis=-1, keepdims=True), 3, axis=-1)
    mixed = np.round((1 - share) * grey + share * colours[mask]).astype(np.uint8)
    return np.where((mask == VOID)[..., None], np.broadcast_to(image, mixed.shape), mixed)


def errors(image: UInt8[np.ndarray, "H W C"], wrong: Bool[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """The grey, pale image with what is wrong in red."""
    grey = np.repeat(128 + image.astype(np.float32).mean(axis=-1, keepdims=True) / 2, 3, axis=-1)
    return np.where(wrong[..., None], np.array([214, 39, 40]), grey).astype(np.uint8)


def fitted(image: UInt8[np.ndarray, "H W C"], *masks: UInt8[np.ndarray, "h w"]) -> list[np.ndarray]:
    """An image and its masks at one size, the image's or less; masks by their nearest pixels."""
    scale = min(1.0, MOST / max(image.shape[:2]))
    width, height = (max(1, round(scale * side)) for side in (image.shape[1], image.shape[0]))
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, -1)
    return [small, *(cv2.resize(m, (width, height), interpolation=cv2.INTER_NEAREST_EXACT) for m in masks)]


def rows(path: Any, those: Sequence[Row], class_names: Sequence[str], title: str) -> None:
    """Image, truth, prediction and errors of each, two of them side by side, over a legend."""
    colours, pairs = palette(class_names), min(2, len(those))
    legend = legend_height(class_names)
    figure, places = grid(4 * len(those), 4 * pairs, 1.7, 1, 0.6, legend)
    for i, row in enumerate(those):
        image, truth, predicted = fitted(row.image, row.truth, row.predicted)
        four = places[4 * i : 4 * i + 4]
        known = truth != VOID
        for place, picture, words in zip(
            four,
            (image, overlay(image, truth, colours), overlay(image, np.where(known, predicted, VOID), colours)),
            (row.words, "truth", "prediction"),
            strict=False,
        ):
            show(place, picture)
            caption(place, words, INK)
        wrong = known & (truth != predicted)
        show(four[3], errors(image, wrong))
        share = wrong.sum() / max(1, known.sum())
        caption(four[3], f"errors: {share:.1%}", ORANGE if share > 0.1 else BLUE)
    legend_below(places[0], class_names, legend)
    heading(figure, title)
    save(figure, path)


def pairs(path: Any, images: Sequence[np.ndarray], masks: Sequence[np.ndarray], class_names: Sequence[str], title: str) -> None:
    """Images, each beside itself with its mask over it, above a legend."""
    colours, legend = palette(class_names), legend_height(class_names)
    figure, places = grid(2 * len(images), min(8, 2 * len(images)), 1.6, 0, 0.5, legend)
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        image, mask = fitted(image, mask)
        show(places[2 * i], image)
        show(places[2 * i + 1], overlay(image, mask, colours))
    legend_below(places[0], class_names, legend)
    heading(figure, title)
    save(figure, path)


def legend(path: Any, class_names: Sequence[str]) -> None:
    """The classes with their colours, as a picture."""
    figure, places = grid(1, 1, 6.0, 0, 0)
    height = max(0.4, 0.2 * -(-len(class_names) // 4))
    figure.set_size_inches(6.0, height)
    places[0].ax.set(ylim=(0, height))
    _names(places[0], class_names, palette(class_names), height, 6.0)
    save(figure, path)


def legend_height(class_names: Sequence[str]) -> float:
    """Inches that a picture must leave free below for the names of the classes."""
    return 0.2 * -(-len(class_names) // 6) + 0.1 if len(class_names) <= LEGEND else 0


def legend_below(place: Place, class_names: Sequence[str], height: float) -> None:
    """The classes with their colours along the lower edge of the picture that the place is in."""
    if height:
        _names(place, class_names, palette(class_names), height, place.ax.get_xlim()[1])


def _names(place: Place, class_names: Sequence[str], colours: np.ndarray, height: float, width: float) -> None:
    columns = max(1, int(width / 1.5))
    for k, name in enumerate(class_names):
        x, y = width * (k % columns) / columns + 0.05, height - 0.2 * (k // columns + 1)
        place.ax.add_patch(Rectangle((x, y), 0.14, 0.14, color=colours[k] / 255))
        place.ax.text(x + 0.19, y + 0.07, text(name, 20), fontsize=8, color=INK, va="center")
