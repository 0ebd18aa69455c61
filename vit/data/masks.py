"""A split of an image set with masks as a source: random crops for training, whole images for evaluation."""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from vit.config import MaskData
from vit.data.decode import BadImage
from vit.data.folder import SPLITS, shown
from vit.data.images import MEND, all_bad, held, skip
from vit.data.maskcrop import crop_image, crop_map, filled, random_spans, viewed
from vit.data.maskset import VOID, Fault, Read, opened
from vit.errors import UserError

FILL = {"label": VOID, "instance": 0}  # what lies outside of an image


class MaskImages:
    """A split of what `listing` found. `id` is the place in the listing of all splits.

    `shape` is what a model is shown, `canvas` the height and width that hold every mask of the split. `things` says which
    classes are counted by objects, where the set has any. With `bad_images="skip"` the next pair of the split stands in for a
    bad one in training, the first following the last; in evaluation it isn't counted (`"bad": True`). Raises `UserError` if
    the set can't be trained on, or at a bad pair that isn't skipped.
    """

    drawn_anew = True

    def __init__(self, config: MaskData, split: str):
        self.config, self.listing, self.view = config, opened(config), config.view
        self.ids = np.flatnonzero(self.listing.splits == SPLITS.index(split)).astype(np.int32)
        if not len(self.ids):
            what, has = f"it has no {split} split", " and ".join(self.splits(config))
            raise UserError(what, shown(config.dir), f"give --split {has.replace(' and ', ' or --split ')}")
        self.name = shown(Path(config.dir).expanduser().absolute().name) or "masks"
        self.class_names, self.things = self.listing.class_names, self.listing.things
        self.shape = (*config.size, 3)
        for i in sorted(self.listing.bad):
            self._skip(i)
        if self.listing.bad.keys() >= set(self.ids.tolist()):
            raise all_bad(self.listing, split)
        self.canvas = self._canvas()
        self.held = None if config.stream else held(self._read, len(self.ids), split)

    @staticmethod
    def splits(config: MaskData) -> tuple[str, ...]:
        """The splits that have pairs."""
        return tuple(SPLITS[i] for i in np.unique(opened(config).splits))

    @property
    def said(self) -> list[str]:
        """What a run should say of the data set: its form, its classes, what isn't used, how many pairs are bad."""
        found = self.listing
        counts = ", ".join(f"{np.sum(found.splits == i):,} {split}" for i, split in enumerate(SPLITS))
        void = f"void: {', '.join(map(str, sorted(found.table.void)))}" if found.table.void else "no void"
        notes = [f"{problem.what} ({problem.where})" for problem in found.problems]
        bad = [f"{len(found.bad)} bad pairs are skipped"] if found.bad else []
        return [f"found {found.form}: {len(found.class_names)} classes, {void}; images: {counts}", *notes, *bad]

    def _canvas(self) -> tuple[int, int]:
        """The largest height and the largest width of the split's masks, by their headers."""

        def size(i: int) -> tuple[int, int]:
            if i not in self.listing.bad:
                try:
                    return self.listing.size(i)
                except BadImage as error:
                    self.listing.note(i, self.listing.fault(i, error))
                    self._skip(i)
            return 1, 1

        with ThreadPoolExecutor() as pool:
            sizes = list(pool.map(size, self.ids.tolist(), chunksize=64))
        least = [self.config.size] if self.config.view == "sliding" else []
        height, width = np.max([*sizes, *least], axis=0).tolist()
        return height, width

    def _skip(self, i: int) -> None:
        """Count a bad pair. Raises `UserError` if it may not be skipped."""
        fault = self.listing.faults.get(i)
        skip(self.listing, i, self.listing.bad[i], self.ids, self.config, fault.fix if fault else MEND)

    def _read(self, index: int) -> dict[str, Any]:
        """The whole pair, by names; nothing if it's bad and may be skipped."""
        i = int(self.ids[index])
        if i in self.listing.bad:
            return {}
        try:
            pair: Read = self.listing.pair(i)
        except Fault as fault:
            self.listing.note(i, fault)
            self._skip(i)
            return {}
        return {name: x for name, x in pair._asdict().items() if x is not None}

    def _pair(self, index: int) -> dict[str, Any]:
        return self.held[index] if self.held else self._read(index)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """As evaluation sees it: the image as `config.view` wants it, its mask at the size it has, in a corner of the canvas.

        `size` is the mask's height and width, `content` what the image takes of `image`.
        """
        pair = self._pair(index)
        if pair:
            image, content = viewed(pair["image"], self.config, self.canvas)
            size = pair["label"].shape
        else:
            shape = self.canvas if self.config.view == "sliding" else self.config.size
            image, content, size = filled(shape, self.config), shape, self.canvas
        maps = {}
        for name in FILL if self.listing.things is not None else ["label"]:
            maps[name] = _padded(pair[name] if pair else None, self.canvas, name)
        sizes = {"size": np.array(size, np.int32), "content": np.array(content, np.int32)}
        return {"image": image, **maps, **sizes, "id": self.ids[index], **({} if pair else {"bad": True})}

    def drawn(self, index: int, rng: random.Random) -> dict[str, Any]:
        """A random crop of the image and the same of its mask; the next good pair in place of a bad one."""
        while not (pair := self._pair(index)):
            index = (index + 1) % len(self.ids)
        y, x = random_spans(pair["label"].shape, self.config, rng)
        maps = {name: crop_map(pair[name], y, x, self.config.size, FILL[name]) for name in FILL if name in pair}
        return {"image": crop_image(pair["image"], y, x, self.config), **maps, "id": self.ids[index]}


def _padded(values: Shaped[np.ndarray, "H W"] | None, canvas: Sequence[int], name: str) -> Shaped[np.ndarray, "Hc Wc"]:
    out = np.full(tuple(canvas), FILL[name], np.uint8 if name == "label" else np.uint16)
    if values is not None:
        out[: values.shape[0], : values.shape[1]] = values
    return out
