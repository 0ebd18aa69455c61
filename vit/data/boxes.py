"""A split of an image set with boxes as a source: random crops for training, whole images for evaluation."""

import random
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from vit.config import BoxData
from vit.data.boxcrop import Pair, jittered, mosaic, rows
from vit.data.boxforms import Boxes
from vit.data.boxset import opened
from vit.data.decode import BadImage
from vit.data.folder import SPLITS, shown
from vit.data.images import all_bad, held, skip
from vit.data.maskcrop import filled, viewed
from vit.errors import UserError

NONE = Boxes(np.zeros((0, 4)), np.zeros(0, np.int32), np.zeros(0, bool), np.zeros(0))


class BoxImages:
    """A split of what `listing` found. `id` is the place in the listing of all splits.

    `shape` is what a model is shown, `room` the number of boxes of the split's image that has the most. With
    `bad_images="skip"` the next image of the split stands in for a bad one in training, the first following the last; in
    evaluation it isn't counted (`"bad": True`). Raises `UserError` if the set can't be trained on, or at a bad image that isn't
    skipped.
    """

    drawn_anew, boxes = True, True

    def __init__(self, config: BoxData, split: str):
        self.config, self.listing, self.view = config, opened(config), config.view
        self.ids = np.flatnonzero(self.listing.splits == SPLITS.index(split)).astype(np.int32)
        if not len(self.ids):
            what, has = f"it has no {split} split", " and ".join(self.splits(config))
            raise UserError(what, shown(self.listing.root), f"give --split {has.replace(' and ', ' or --split ')}")
        self.name = shown(Path(self.listing.root).absolute().name) or "boxes"
        self.class_names, self.shape = self.listing.class_names, (*config.size, 3)
        for i in sorted(self.listing.bad):
            self._skip(i, self.listing.bad[i])
        if self.listing.bad.keys() >= set(self.ids.tolist()):
            raise all_bad(self.listing, split)
        self.room = max(1, *(len(self.listing.boxes[i].kinds) for i in self.ids))
        self.held = None if config.stream else held(self._read, len(self.ids), split)

    @staticmethod
    def splits(config: BoxData) -> tuple[str, ...]:
        """The splits that have images."""
        return tuple(SPLITS[i] for i in np.unique(opened(config).splits))

    @property
    def said(self) -> list[str]:
        """What a run should say of the data set: its form, its classes, what isn't used, what is dropped or clipped."""
        found = self.listing
        counts = ", ".join(f"{np.sum(found.splits == i):,} {split}" for i, split in enumerate(SPLITS))
        boxes, crowds = (sum(map(n, found.boxes)) for n in (lambda b: len(b.kinds), lambda b: int(b.crowd.sum())))
        told = f"{len(found.class_names)} classes, {boxes:,} boxes, {crowds:,} of them crowds or difficult"
        notes = [f"{problem.what} ({problem.where})" for problem in found.problems]
        if found.flaws:
            what, where, _, _ = found.flaws[0]
            notes.append(f"{len(found.flaws):,} faults of annotations are dropped, the first: {what} ({where})")
        notes += [f"{found.clipped:,} boxes reach out of their images and are clipped"] if found.clipped else []
        notes += [f"{len(found.bad)} bad images are skipped"] if found.bad else []
        return [f"found {found.form}: {told}; images: {counts}", *notes]

    @property
    def kinds(self) -> Int[np.ndarray, "_"]:
        """The class of every box of the split that is no crowd."""
        those = [self.listing.boxes[i] for i in self.ids]
        return np.concatenate([boxes.kinds[~boxes.crowd] for boxes in those])

    def _skip(self, i: int, reason: str) -> None:
        """Count a bad image. Raises `UserError` if it may not be skipped."""
        skip(self.listing, i, reason, self.ids, self.config)

    def _read(self, index: int) -> dict[str, Any]:
        """The whole image with its boxes; nothing if it's bad and may be skipped."""
        i = int(self.ids[index])
        try:
            return {"pair": self.listing.pair(i)}
        except BadImage as error:
            self._skip(i, str(error))
            return {}

    def _pair(self, index: int) -> Pair | None:
        return (self.held[index] if self.held else self._read(index)).get("pair")

    def _good(self, index: int) -> Pair:
        """The pair, or in place of a bad one the next good one."""
        while (pair := self._pair(index)) is None:
            index = (index + 1) % len(self.ids)
        return pair

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """As evaluation sees it: the whole image as `config.view` wants it.

        `size` is its own height and width, `content` what it takes of `image`, `area` each box's in pixels of its own.
        """
        pair, shape = self._pair(index), self.config.size
        if pair is None:
            image, content, size, boxes = filled(shape, self.config), shape, shape, NONE
        else:
            whole, boxes = pair
            size = whole.shape[:2]
            image, content = viewed(whole, self.config)
            measured = np.prod(boxes.corners[:, 2:] - boxes.corners[:, :2], axis=1) * size[0] * size[1]
            share = np.tile([content[0] / shape[0], content[1] / shape[1]], 2)
            boxes = boxes._replace(corners=boxes.corners * share, area=np.where(np.isnan(boxes.area), measured, boxes.area))
        sizes = {"size": np.array(size, np.int32), "content": np.array(content, np.int32)}
        example = {"image": image, **rows(boxes, self.room), **sizes, "id": self.ids[index]}
        return example if pair else {**example, "bad": True}

    def drawn(self, index: int, rng: random.Random) -> dict[str, Any]:
        """A random crop of the image and its boxes, or a mosaic of four; the next good image in place of a bad one."""
        config, order = self.config, [index]

        def pairs() -> Pair:
            return self._good(order.pop() if order else rng.randrange(len(self.ids)))

        view = mosaic(pairs, config, rng) if rng.random() < config.mosaic else jittered(pairs(), config, rng)
        corners = view.corners / np.tile(config.size, 2)
        found = rows(Boxes(corners, view.kinds, view.crowd, np.zeros(len(corners))), config.most)
        del found["area"]
        return {"image": view.image, **found, "id": self.ids[index]}
