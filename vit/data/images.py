"""A split of a data set of image files, as a source of square images; and what happens to bad ones."""

import random
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from rich.console import Console
from rich.progress import track

from vit.config import BoxData, FolderData, MaskData
from vit.data.crop import as_evaluated, inception_crop
from vit.data.decode import BadImage, decode
from vit.data.folder import SPLITS, Listing, opened, shown
from vit.errors import UserError

MOST_BAD = 0.01  # of a data set's images
MEND = "mend or remove it"
USES = {"train": "train on", "val": "validate with", "test": "test on"}

_counting = threading.Lock()


class Images:
    """A split of what `listing` found. `id` is the place in the listing of all splits.

    With `bad_images="skip"` the next image of the split stands in for a bad one in training, the first following the last;
    in evaluation it isn't counted (`"bad": True`). Which one stands in follows from the files alone, so batches stay a
    function of seed and step. Raises `UserError` if the set can't be trained on, or at a bad image that isn't skipped.
    """

    drawn_anew = False

    def __init__(self, config: FolderData, split: str):
        self.config, self.listing = config, opened(config)
        self.ids = np.flatnonzero(self.listing.splits == SPLITS.index(split)).astype(np.int32)
        if not len(self.ids):
            what, has = f"it has no {split} split", " and ".join(self.splits(config))
            raise UserError(what, shown(config.dir), f"give --split {has.replace(' and ', ' or --split ')}")
        self.name = shown(config.dir.removeprefix("hf:").rstrip("/").rpartition("/")[2]) or "images"
        self.class_names = self.listing.class_names
        self.labels = self.listing.labels[self.ids]
        for i in sorted(self.listing.bad):
            self._skip(i, self.listing.bad[i])
        if self.listing.bad.keys() >= set(self.ids.tolist()):
            raise all_bad(self.listing, split)
        self.held = None if config.stream else held(self._evaluated, len(self.ids), split)

    @staticmethod
    def splits(config: FolderData) -> tuple[str, ...]:
        """The splits that have images."""
        return tuple(SPLITS[i] for i in np.unique(opened(config).splits))

    @property
    def said(self) -> list[str]:
        """What a run should say of the data set: its form, its classes, what isn't used, which images are bad."""
        found = self.listing
        counts = ", ".join(f"{np.sum(found.splits == i):,} {split}" for i, split in enumerate(SPLITS))
        notes = [f"{problem.what} ({problem.where})" for problem in found.problems]
        bad = [f"{len(found.bad)} bad images are skipped"] if found.bad else []
        return [f"found {found.form}: {len(found.class_names)} classes; images: {counts}", *notes, *bad]

    def _decoded(self, index: int) -> UInt8[np.ndarray, "H W 3"] | None:
        """The whole image, or None if it's bad and may be skipped."""
        i = int(self.ids[index])
        if i in self.listing.bad:
            return None
        try:
            return decode(self.listing.read(i))
        except BadImage as error:
            self._skip(i, str(error))
            return None

    def _skip(self, i: int, reason: str) -> None:
        skip(self.listing, i, reason, self.ids, self.config)

    def _example(self, index: int, image: np.ndarray) -> dict[str, Any]:
        return {"image": image, "label": self.labels[index], "id": self.ids[index]}

    def _evaluated(self, index: int) -> dict[str, Any]:
        size = self.config.size, self.config.size
        image = self._decoded(index)
        if image is None:
            return {**self._example(index, np.zeros((*size, 3), np.uint8)), "bad": True}
        return self._example(index, as_evaluated(image, size, 3, self.config.crop))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """As evaluation sees it."""
        return self.held[index] if self.held else self._evaluated(index)

    def drawn(self, index: int, rng: random.Random) -> dict[str, Any]:
        """With an inception crop; the next good image in place of a bad one."""
        while (image := self._decoded(index)) is None:
            index = (index + 1) % len(self.ids)
        return self._example(index, inception_crop(image, self.config.size, rng))


def skip(
    found: Listing, i: int, reason: str, ids: Int[np.ndarray, "n"], config: FolderData | MaskData | BoxData, fix: str = MEND
) -> None:
    """Count image i as bad, one of a split's `ids`. Raises `UserError` if it may not be skipped."""
    total = len(found.names)
    if config.bad_images == "error":
        fix = f"{fix}, or go on without such images: --data.bad-images skip"
        raise UserError(f"this image can't be used: {reason}", found.where(i), fix)
    with _counting:
        if new := i not in found.bad:
            found.bad[i] = reason
        count = len(found.bad)
    if new and found.bad.keys() >= set(ids.tolist()):
        raise all_bad(found, SPLITS[int(found.splits[i])])
    if count > MOST_BAD * total:
        what = f"{count} of {total:,} images are bad, over {MOST_BAD:.0%}; the last: {reason}"
        raise UserError(what, found.where(i), f"mend or remove them: uv run vit check {shown(config.dir)} lists them")
    if new:
        print(f"skipped {found.where(i)}: {reason} ({count} of {total:,} images so far)", file=sys.stderr, flush=True)


def held(read: Callable[[int], dict[str, Any]], count: int, split: str) -> list[dict[str, Any]]:
    """All examples of a split, read by threads under a progress bar."""
    with ThreadPoolExecutor() as pool:
        reading = pool.map(read, range(count))
        return list(track(reading, f"reading {split}", count, console=Console(stderr=True), transient=True))


def all_bad(found: Listing, split: str) -> UserError:
    """Not one image of a split can be used."""
    i = next(i for i in sorted(found.bad) if found.splits[i] == SPLITS.index(split))
    what = f"all {np.sum(found.splits == SPLITS.index(split)):,} images to {USES[split]} are bad, the first: {found.bad[i]}"
    return UserError(what, found.where(i), "mend or remove them, or put good ones beside them")
