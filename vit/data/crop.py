"""Crops while reading, on the host: for images too large or too varied to be held in memory."""

import functools
import math
import random
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vit.config import DigitsData, FolderData, TfdsData


def inception_crop(image: UInt8[np.ndarray, "H W C"], size: int, rng: random.Random) -> UInt8[np.ndarray, "S S C"]:
    """A random part of 5 to 100 % of the area, 3:4 to 4:3, resized to a square (arXiv 1409.4842), as timm and torchvision do.

    Where ten tries give no part that fits, the central one of the nearest shape.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(0.05, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(rng.random() * (width - w + 1)), int(rng.random() * (height - h + 1))
            return _quickly(image[y : y + h, x : x + w], size)
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    y, x = (height - h) // 2, (width - w) // 2
    return _quickly(image[y : y + h, x : x + w], size)


def shifted_crop(image: UInt8[np.ndarray, "H W C"], size: int, share: float, rng: random.Random) -> UInt8[np.ndarray, "S S C"]:
    """The square that evaluation takes from the middle, from anywhere: big_vision's `resize_small` and `random_crop`."""
    height, width = image.shape[:2]
    side = share * min(height, width)
    return _resize(image, (rng.random() * (width - side), rng.random() * (height - side), side, side), (size, size))


def _quickly(image: UInt8[np.ndarray, "H W C"], size: int) -> UInt8[np.ndarray, "S S C"]:
    """To a square by OpenCV, ten times sooner than by Pillow: the mean of whole blocks, then bilinear, which skips no pixel."""
    cv2, (height, width, _) = opencv(), image.shape
    block = 1 << max(0, (min(height, width) // size).bit_length() - 1)  # of the powers of 2 the last that leaves `size`
    if block > 1:
        h, w = height // block, width // block
        image = cv2.resize(image[: h * block, : w * block], (w, h), interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR).reshape(size, size, -1)


@functools.cache
def opencv() -> Any:
    """OpenCV, without threads of its own; imported when it is first needed."""
    import cv2

    cv2.setNumThreads(0)  # whole images are spread over threads already
    return cv2


def as_evaluated(
    image: UInt8[np.ndarray, "H W C"], size: tuple[int, int], channels: int = 3, share: float = 0.875
) -> UInt8[np.ndarray, "h w c"]:
    """An image as evaluation and prediction see it: the central part of the shape of `size`, resized to it bicubically.

    The part takes `share` of the largest such one's height and width (`evaluated_share` of a data configuration). With a
    share of 1 an image of that size stays as it is. Colour becomes grey by its luma, grey colour by repetition.
    """
    height, width = image.shape[:2]
    if channels != image.shape[2]:
        image = np.asarray(Image.fromarray(image).convert("L"))[..., None] if channels == 1 else np.repeat(image, 3, axis=2)
    if share == 1 and (height, width) == tuple(size):
        return image
    h, w = share * min(height, width * size[0] / size[1]), share * min(width, height * size[1] / size[0])
    return _resize(image, ((width - w) / 2, (height - h) / 2, w, h), size)


def evaluated_share(data: DigitsData | TfdsData | FolderData) -> float:
    """Which share of an image's height and width its evaluation sees."""
    return data.crop if isinstance(data, FolderData) or (isinstance(data, TfdsData) and data.size) else 1.0


def _resize(
    image: UInt8[np.ndarray, "H W C"], box: tuple[float, float, float, float], size: tuple[int, int]
) -> UInt8[np.ndarray, "h w C"]:
    x, y, w, h = box
    grey = image.shape[2] == 1
    picture = Image.fromarray(image[..., 0] if grey else image)
    # From four times the size on the pixels are first averaged in whole blocks: the same picture, sooner.
    resized = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC, (x, y, x + w, y + h), reducing_gap=2.0))
    return resized[..., None] if grey else resized
