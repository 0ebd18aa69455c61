"""Where examples come from: random access, `source[i] → {"image": uint8 (H, W, C), "label", "id"}`.

A source has `class_names` and knows its `id`s, which name an example for good: the same in every split and on every host.
"""

from typing import Any, Protocol

import numpy as np

from vit.config import DigitsData
from vit.errors import UserError

SPLITS = ("train", "val", "test")


class Source(Protocol):
    """A split of a data set; also what Grain calls a random-access data source."""

    name: str
    class_names: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class Digits:
    """scikit-learn's handwritten digits: 1,293 for training, 144 for validation, 360 for test.

    `id` is the place in `sklearn.datasets.load_digits()`. Grey levels 0 to 16 become 0 to 255.
    """

    name = "digits"

    def __init__(self, split: str):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits: Any = load_digits()
        labels, ids = digits.target.astype(np.int32), np.arange(len(digits.target), dtype=np.int32)
        rest, test = train_test_split(ids, test_size=360, stratify=labels, random_state=0)
        train, val = train_test_split(rest, test_size=144, stratify=labels[rest], random_state=0)
        self.ids = {"train": train, "val": val, "test": test}[split]
        self.images = np.round(digits.images[self.ids] * (255 / 16)).astype(np.uint8)[..., None]
        self.labels = labels[self.ids]
        self.class_names = [str(name) for name in digits.target_names]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": self.labels[index], "id": self.ids[index]}


def splits(config: DigitsData) -> tuple[str, ...]:
    """The splits that the data set has; the last is the one to report on."""
    return {DigitsData: SPLITS}[type(config)]


def open_source(config: DigitsData, split: str) -> Source:
    """The split (train, val or test) of the data set that the configuration names."""
    return {DigitsData: Digits}[type(config)](split)


def describe(source: Source) -> dict[str, Any]:
    """What a task and a checkpoint need to know of a data set."""
    height, width, channels = source[0]["image"].shape
    if len(set(source.class_names)) < len(source.class_names):
        raise UserError("two classes have the same name", source.name, "give every class a name of its own")
    return {
        "dataset": source.name,
        "class_names": source.class_names,
        "image_size": [height, width],
        "channels": channels,
    }
