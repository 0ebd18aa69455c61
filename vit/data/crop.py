"""Crops while reading, on the host: for images too large or too varied to be held in memory."""

import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def inception_crop(image: UInt8[np.ndarray, "H W C"], size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "S S C"]:
    """A random part of 5 to 100 % of the area, 3:4 to 4:3, resized to a square (arXiv 1409.4842), as timm and torchvision do.

    Where ten tries give no part that fits, the central one of the nearest shape.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(0.05, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return _resize(image, (rng.integers(width - w + 1), rng.integers(height - h + 1), w, h), size)
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return _resize(image, ((width - w) / 2, (height - h) / 2, w, h), size)


def central_crop(image: UInt8[np.ndarray, "H W C"], size: int, share: float = 0.875) -> UInt8[np.ndarray, "S S C"]:
    """The central square whose side is `share` of the shorter side, resized: what evaluation on ImageNet sees."""
    height, width = image.shape[:2]
    side = share * min(height, width)
    return _resize(image, ((width - side) / 2, (height - side) / 2, side, side), size)


def _resize(image: UInt8[np.ndarray, "H W C"], box: tuple[float, float, float, float], size: int) -> UInt8[np.ndarray, "S S C"]:
    x, y, w, h = box
    grey = image.shape[2] == 1
    picture = Image.fromarray(image[..., 0] if grey else image)
    resized = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, (x, y, x + w, y + h)))
    return resized[..., None] if grey else resized


def as_evaluated(image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int], channels: int) -> UInt8[np.ndarray, "h w C"]:
    """The evaluation view of one decoded image (stand-in until the data branch is merged)."""
    picture = Image.fromarray(image)
    if channels == 1:
        picture = picture.convert("L")
    if (picture.height, picture.width) != size:
        picture = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture)
    return pixels[..., None] if channels == 1 else pixels
