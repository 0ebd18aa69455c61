"""Where pretrained weights come from."""

from typing import NamedTuple

import numpy as np

from vit.config import ViTConfig
from vit.errors import UserError


class Pretrained(NamedTuple):
    """A pretrained model: `params` by string path, complete for `ViT(config, image_size=…, channels=…, classes=…)`."""

    params: dict[str, np.ndarray]
    config: ViTConfig
    image_size: tuple[int, int]
    channels: int
    classes: int
    class_names: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str


def load(text: str) -> Pretrained:
    """The weights that a text names. Raises `UserError` if there are none."""
    from vit.training.storage import open_folder
    from vit.weights.runs import is_run, load_run

    folder = open_folder(text)
    if is_run(folder):
        return load_run(folder)
    raise UserError("there are no weights here", text, "give the folder of a run, as runs/digits-s0")
