"""Where examples come from: random access, `source[i] → {"image": uint8 (H, W, C), "label", "id"}`, more with masks or boxes.

A source has `class_names` and knows its `id`s, which name an example for good: the same in every split and on every host.
"""

import functools
import random
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vit.config import BoxData, Data, FolderData, MaskData, ScenesData, TfdsData
from vit.data.boxes import BoxImages
from vit.data.crop import as_evaluated, inception_crop, shifted_crop
from vit.data.decode import BadImage, decode
from vit.data.folder import SPLITS
from vit.data.images import Images, held
from vit.data.masks import MaskImages
from vit.data.scenes import Scenes
from vit.errors import UserError


class Source(Protocol):
    """A split of a data set; also what Grain calls a random-access data source."""

    name: str
    class_names: list[str]
    drawn_anew: bool  # even a set that is held in memory is cropped at random each time

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def drawn(self, index: int, rng: random.Random) -> dict[str, Any]:
        """The example as a training step streams it: at random, where the set crops while reading."""
        ...


class Digits:
    """scikit-learn's handwritten digits: 1,293 for training, 144 for validation, 360 for test.

    `id` is the place in `sklearn.datasets.load_digits()`. Grey levels 0 to 16 become 0 to 255.
    """

    name, drawn_anew = "digits", False

    def __init__(self, split: str):
        images, labels, names, splits = self._read()
        self.ids = splits[split]
        self.images, self.labels, self.class_names = images[self.ids], labels[self.ids], [*names]

    @staticmethod
    @functools.cache
    def _read() -> tuple[np.ndarray, np.ndarray, list[str], dict[str, Any]]:
        """All images, their labels, the classes, and the ids of each split."""
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits: Any = load_digits()
        labels, ids = digits.target.astype(np.int32), np.arange(len(digits.target), dtype=np.int32)
        rest, test = train_test_split(ids, test_size=360, stratify=labels, random_state=0)
        train, val = train_test_split(rest, test_size=144, stratify=labels[rest], random_state=0)
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        return images, labels, [str(name) for name in digits.target_names], {"train": train, "val": val, "test": test}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": self.labels[index], "id": self.ids[index]}

    def drawn(self, index: int, rng: random.Random) -> dict[str, Any]:
        """As it is."""
        return self[index]


class Tfds:
    """A split of a prepared TFDS set, read without TensorFlow. `id` is the place in the TFDS split that this is a part of.

    Raises `UserError` if the set isn't prepared, or can't be classified.
    """

    drawn_anew = False

    def __init__(self, config: TfdsData, split: str):
        from absl import logging
        from tensorflow_datasets.core import ReadInstruction, read_only_builder
        from tensorflow_datasets.core.decode import SkipDecoding
        from tensorflow_datasets.core.features import Image
        from tensorflow_datasets.core.registered import DatasetNotFoundError

        logging.set_verbosity(logging.ERROR)  # else it recommends OpenCV
        self.config, self.name, self.spec = config, config.name, getattr(config, split)
        folder = Path(config.dir).expanduser()
        prepare = f"uv run vit prepare {config.name} --data.dir {config.dir}"
        try:
            builder: Any = read_only_builder.builder_from_files(config.name, data_dir=str(folder))
        except DatasetNotFoundError as error:
            raise UserError(f"{config.name} isn't prepared here", str(folder), prepare) from error
        features = builder.info.features
        if not {"image", "label"} <= features.keys() or not isinstance(features["image"], Image):
            what = f"{config.name} has no image and label, only {', '.join(sorted(features))}"
            raise UserError(what, str(folder), "choose another --data.name")
        if None in features["image"].shape[:2] and not config.size:
            what = f"the images of {config.name} have many sizes"
            raise UserError(what, str(folder), "give --data.size PIXELS --data.stream for square crops")
        try:
            self.source = builder.as_data_source(split=self.spec, decoders={"image": SkipDecoding()})
            (part,) = ReadInstruction.from_spec(self.spec).to_absolute(builder.info.splits)
        except NotImplementedError as error:
            what = f"{config.name} was prepared for reading in order only"
            fix = f"prepare it in another folder: uv run vit prepare {config.name} --data.dir FOLDER"
            raise UserError(what, str(folder), fix) from error
        except (ValueError, KeyError, AssertionError) as error:
            what = f"{config.name} has no split {self.spec!r}, but {', '.join(builder.info.splits)}"
            raise UserError(what, str(folder), f"give --data.{split} in TFDS's notation, as train[:90%]") from error
        self.start = part.from_ or 0
        self.channels = 1 if features["image"].shape[-1] == 1 else 3  # what is decoded has three, grey three equal ones
        self.class_names = features["label"].names or [str(i) for i in range(features["label"].num_classes)]
        self.held = None if config.stream else held(self._read, len(self.source), split)

    def _read(self, index: int) -> dict[str, Any]:
        example = self.source[index]
        try:
            image = decode(example["image"])[..., : self.channels]
        except BadImage as error:
            where, fix = f"{self.name}, {self.spec}, image {index}", "prepare the set again, from an undamaged source"
            raise UserError(f"this image can't be used: {error}", where, fix) from error
        return {"image": image, "label": np.int32(example["label"]), "id": np.int32(self.start + index)}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.held[index] if self.held else self._read(index)
        if not self.config.size:
            return example
        size, image = (self.config.size, self.config.size), example["image"]
        return {**example, "image": as_evaluated(image, size, image.shape[2], self.config.crop)}

    def drawn(self, index: int, rng: random.Random) -> dict[str, Any]:
        """With a random crop where the configuration asks for crops."""
        config = self.config
        if not config.size:
            return self[index]
        example = self._read(index)
        if config.random_crop == "shift":
            return {**example, "image": shifted_crop(example["image"], config.size, config.crop, rng)}
        return {**example, "image": inception_crop(example["image"], config.size, rng)}


def splits(config: Data) -> tuple[str, ...]:
    """The splits that the data set has; the last is the one to report on."""
    if isinstance(config, MaskData):
        return MaskImages.splits(config)
    if isinstance(config, BoxData):
        return BoxImages.splits(config)
    if isinstance(config, FolderData):
        return Images.splits(config)
    return tuple(split for split in SPLITS if getattr(config, split, split))


def open_source(config: Data, split: str) -> Source:
    """The split (train, val or test) of the data set that the configuration names."""
    kinds = {FolderData: Images, MaskData: MaskImages, BoxData: BoxImages, TfdsData: Tfds, ScenesData: Scenes}
    return kinds[type(config)](config, split) if type(config) in kinds else Digits(split)


def said(source: Source) -> list[str]:
    """What a run should say of a data set whose form was found by looking; nothing of any other."""
    return source.said if isinstance(source, Images | MaskImages | BoxImages) else []


def labels(source: Source, most: int | None = None) -> np.ndarray:
    """The labels of all examples or boxes, or of `most`, evenly spread, where reading one means reading its image."""
    if isinstance(source, Images):
        return source.labels
    if isinstance(source, BoxImages):
        return source.kinds
    count = min(len(source), most or len(source))
    return np.array([source[int(i)]["label"] for i in np.linspace(0, len(source) - 1, count)])


def describe(source: Source) -> dict[str, Any]:
    """What a task and a checkpoint need to know of a data set."""
    height, width, channels = source.shape if isinstance(source, MaskImages | BoxImages) else source[0]["image"].shape
    if twice := [name for name, count in Counter(source.class_names).items() if count > 1]:
        raise UserError(f"more than one class is called {twice[0]!r:.40}", source.name, "give every class a name of its own")
    more: dict[str, Any] = {}
    if isinstance(source, BoxImages) or (isinstance(source, Scenes) and source.boxes):
        more = {"view": source.view, "boxes": True}
    elif isinstance(source, MaskImages | Scenes):
        more = {"view": source.view, "things": source.things}
    return {
        "dataset": source.name,
        "class_names": source.class_names,
        "image_size": [height, width],
        "channels": channels,
    } | more
