"""What all forms of sets with boxes share: an image with its boxes, and which boxes can't be.

A form reads annotations into `Row`s, `Sheet.add` makes `Labelled` images of them and notes what is wrong.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from vit.data.folder import Problem

LEAST = 1e-6  # of the image's height or width: a box of less has no area, as float32 can't hold it
REACH = 1e-3  # by which a box may reach out of its image without a word
MEND = "mend the box, or remove it"


class Row(NamedTuple):
    """A box as an annotation gives it: (y0, x0, y1, x1) in shares of the image's height and width, the id of its class.

    `area` is in pixels, NaN where nobody says; `told` are the numbers as they stand in the file, `where` is their place in it.
    """

    corners: tuple[float, float, float, float]
    kind: int
    told: str
    where: str
    crowd: bool = False
    area: float = math.nan


class Boxes(NamedTuple):
    """An image's boxes: (y0, x0, y1, x1) in [0, 1], ids of classes, crowds (no target), areas in pixels (NaN: the box's)."""

    corners: Float[np.ndarray, "n 4"]
    kinds: Int[np.ndarray, "n"]
    crowd: Bool[np.ndarray, "n"]
    area: Float[np.ndarray, "n"]


class Labelled(NamedTuple):
    """An image by its name below the root, its split or "", its boxes, its height and width as its annotation says, its id."""

    image: str
    split: str
    boxes: Boxes
    size: tuple[int, int] | None = None
    number: int | str | None = None


@dataclass
class Sheet:
    """What a form found. `flaws` are what `--data.bad-boxes drop` leaves out, `problems` what must be mended.

    `names` are those of the classes by id. `clipped` counts the boxes that reach out of their images.
    """

    form: str
    root: Path
    names: dict[int, str] = field(default_factory=dict)
    images: list[Labelled] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    flaws: list[Problem] = field(default_factory=list)
    read: Callable[[str], Path | bytes] | None = None
    clipped: int = 0

    def flaw(self, what: str, where: str, fix: str = MEND) -> None:
        """Something is left out, or ends a run."""
        self.flaws.append(Problem(what, where, fix))

    def note(self, what: str, where: str, fix: str) -> None:
        """Something that a run goes on with."""
        self.problems.append(Problem(what, where, fix, fatal=False))

    def add(
        self,
        image: str,
        split: str,
        rows: Iterable[Row],
        size: tuple[int, int] | None = None,
        fix: str = MEND,
        number: int | str | None = None,
    ) -> None:
        """An image with those of its boxes that can be."""
        good = []
        for row in rows:
            what = f"its class {row.kind} is not among the classes" if row.kind not in self.names else wrong(row.corners)
            if what:
                self.flaw(f"this box can't be used: {what} ({row.told:.80})", row.where, fix)
            else:
                good.append(row)
                self.clipped += min(row.corners) < -REACH or max(row.corners) > 1 + REACH
        corners = np.array([row.corners for row in good], float).reshape(-1, 4).clip(0, 1)
        kinds, crowd = np.array([row.kind for row in good], np.int32), np.array([row.crowd for row in good], bool)
        area = np.array([row.area for row in good], float)
        self.images.append(Labelled(image, split, Boxes(corners, kinds, crowd, area), size, number))


def wrong(corners: tuple[float, float, float, float]) -> str:
    """Why a box (y0, x0, y1, x1) in shares of its image can't be, in words; "" if it can."""
    if not all(map(math.isfinite, corners)):
        return "it has a number that is not finite"
    y0, x0, y1, x1 = corners
    if y1 < y0 or x1 < x0:
        return "its end lies before its start"
    if y1 - y0 < LEAST or x1 - x0 < LEAST:
        return "it has no area"
    if min(y1, 1) - max(y0, 0) < LEAST or min(x1, 1) - max(x0, 0) < LEAST:
        return "it lies outside of its image"
    return ""


def turned(corners: Float[np.ndarray, "n 4"], orientation: int) -> Float[np.ndarray, "n 4"]:
    """Boxes of an image as it is stored, once EXIF has turned it; see `vit.data.decode.upright`."""
    y0, x0, y1, x1 = corners.T
    if orientation >= 5:
        y0, x0, y1, x1 = x0, y0, x1, y1
    if orientation in (2, 3, 6, 7):
        x0, x1 = 1 - x1, 1 - x0
    if orientation in (3, 4, 7, 8):
        y0, y1 = 1 - y1, 1 - y0
    return np.stack([y0, x0, y1, x1], axis=1)


def sizes_said(size: tuple[int, int]) -> str:
    """Height and width in words."""
    return f"{size[1]} x {size[0]}"
