"""What a weights file holds, whoever wrote it."""

from typing import Any, NamedTuple

import numpy as np

from vit.config import ViTConfig

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Found(NamedTuple):
    """What was read before it is understood: arrays by their names there, and what stood beside them.

    `config` and `preprocessor` are JSON files as Hugging Face has them, `ours` what this program wrote when it made the file,
    `name` the model's as far as known, `where` the place for errors.
    """

    arrays: dict[str, np.ndarray]
    config: dict[str, Any]
    preprocessor: dict[str, Any]
    ours: dict[str, Any]
    name: str
    where: str


class Pretrained(NamedTuple):
    """Parameters by path, complete for `ViT(config, image_size=…, channels=…, classes=…)`, and what else the file tells."""

    params: dict[str, np.ndarray]
    config: ViTConfig
    image_size: tuple[int, int]
    """(H, W) in pixels that the positions are made for."""
    channels: int
    classes: int
    """0: no head."""
    class_names: list[str]
    """Empty where the file tells none."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per-channel mean and deviation of pixels in [0, 1] that the weights expect."""
    source: str
    notes: list[str]
    """What had to be assumed or was left out, a line on each."""
