"""Image and mask moved together: random crops for training, and what evaluation and prediction show.

A part of whole pixels of the source goes to a part of whole pixels of the result, for image and mask alike: pixel i of n made
of m has its centre at (i + 0.5) m / n of the source. The mask takes the pixel that this lies in, the image is interpolated.
"""

import functools
import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from vit.config import BoxData, MaskData
from vit.data.crop import opencv


class Span(NamedTuple):
    """One axis of a crop: source pixels `start` to `stop` become `first` to `last` of the result."""

    start: int
    stop: int
    first: int
    last: int


def spans(length: int, scale: float, size: int, place: float) -> Span:
    """The part of an axis of `length` pixels that a result of `size` shows, at so many of its pixels for one of the source.

    `place` in [0, 1] says where: of all places at which the smaller of the two lies inside the larger.
    """
    offset = place * (length * scale - size)  # in pixels of the result; below 0: there is room around
    start = min(max(0, round(offset / scale)), length - 1)
    stop = max(start + 1, min(length, round((offset + size) / scale)))
    if length * scale >= size:
        return Span(start, stop, 0, size)
    first = min(max(0, round(-offset)), size - 1)
    return Span(start, stop, first, max(first + 1, min(size, first + round(length * scale))))


def random_spans(
    shape: Sequence[int], config: MaskData | BoxData, rng: random.Random, wanted: Sequence[int] | None = None
) -> tuple[Span, Span]:
    """A training crop of an image of this height and width: rows and columns, for a result of `config.size` or as `wanted`."""
    low, high = config.scale[0], config.scale[-1]
    s = math.exp(rng.uniform(math.log(low), math.log(high)))
    base = [size / length for size, length in zip(config.size, shape, strict=False)]
    if config.view == "padded":
        base = [min(base)] * 2
    elif config.view == "sliding":
        base = [1.0, 1.0]
    wanted = wanted or config.size
    y, x = (spans(n, b * s, size, rng.random()) for n, b, size in zip(shape, base, wanted, strict=False))
    return y, x


def crop_image(image: UInt8[np.ndarray, "H W 3"], y: Span, x: Span, config: MaskData | BoxData) -> UInt8[np.ndarray, "h w 3"]:
    """The image's part of a crop; the mean colour around it."""
    part = resized(image[y.start : y.stop, x.start : x.stop], (y.last - y.first, x.last - x.first))
    if part.shape[:2] == tuple(config.size):
        return part
    out = filled(config.size, config)
    out[y.first : y.last, x.first : x.last] = part
    return out


def crop_map(values: Shaped[np.ndarray, "H W"], y: Span, x: Span, size: Sequence[int], fill: int) -> Shaped[np.ndarray, "h w"]:
    """A mask's part of the same crop, each pixel one of the source's; `fill` around it."""
    rows, columns = (_nearest(span) for span in (y, x))
    part = values[y.start : y.stop, x.start : x.stop].take(rows, axis=0).take(columns, axis=1)
    if part.shape == tuple(size):
        return part
    out = np.full(tuple(size), fill, values.dtype)
    out[y.first : y.last, x.first : x.last] = part
    return out


def _nearest(span: Span) -> np.ndarray:
    n, m = span.last - span.first, span.stop - span.start
    return (2 * np.arange(n) + 1) * m // (2 * n)  # in whole numbers: no rounding


def resized(image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """By OpenCV, quickly: the mean of whole blocks where it shrinks to half or less, then bilinear, which skips no pixel."""
    cv2, (height, width) = opencv(), image.shape[:2]
    if (height, width) == size:
        return np.ascontiguousarray(image)
    blocks = [1 << max(0, (n // m).bit_length() - 1) for n, m in zip((height, width), size, strict=True)]
    if blocks == [1, 1]:
        return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    h, w = height // blocks[0], width // blocks[1]
    means = cv2.resize(image[: h * blocks[0], : w * blocks[1]], (w, h), interpolation=cv2.INTER_AREA)
    # Up to a block of pixels is left over at the end: not a resize of what is there, but the same places as for the mask.
    scale = [height / blocks[0] / size[0], width / blocks[1] / size[1]]
    matrix = np.array([[scale[1], 0, scale[1] / 2 - 0.5], [0, scale[0], scale[0] / 2 - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(means, matrix, size[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


def filled(size: Sequence[int], config: MaskData | BoxData) -> UInt8[np.ndarray, "h w 3"]:
    """An image of the mean colour."""
    return _filled(tuple(size), config.mean).copy()


@functools.lru_cache(8)
def _filled(size: tuple[int, ...], mean: tuple[float, ...]) -> UInt8[np.ndarray, "h w 3"]:
    out = np.empty((*size, 3), np.uint8)
    out[:] = np.round(255 * np.asarray(mean))
    return out


def viewed(
    image: UInt8[np.ndarray, "H W 3"], config: MaskData | BoxData, canvas: Sequence[int] | None = None
) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
    """An image as evaluation and prediction show it, and the height and width that the whole of it takes there, from top left.

    With sliding windows it keeps its own size, on a `canvas` or at least the size of a window. Else it is resized bicubically.
    """
    height, width = image.shape[:2]
    if config.view == "sliding":
        out = filled([max(*n) for n in zip(image.shape, config.size, canvas or (1, 1), strict=False)], config)
        out[:height, :width] = image
        return out, (height, width)
    h, w = config.size
    if config.view == "padded":
        factor = min(h / height, w / width)
        h, w = (max(1, min(side, round(n * factor))) for side, n in zip(config.size, (height, width), strict=True))
    if (h, w) != (height, width):
        # From four times the size on the pixels are first averaged in whole blocks: the same picture, sooner.
        image = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BICUBIC, reducing_gap=2.0))
    if (h, w) == tuple(config.size):
        return image, (h, w)
    out = filled(config.size, config)
    out[:h, :w] = image
    return out, (h, w)
