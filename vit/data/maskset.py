"""What lies in an image set with masks: every pair of image and mask with its split, what ids mean, and what is wrong there.

The forms that are found, and the rules for ids, names and splits: docs/decisions/0013.
"""

import os
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8, UInt16
from rich.console import Console
from rich.progress import track

from vit.config import VOID, MaskData
from vit.data import legend
from vit.data.decode import BadImage, decode, header
from vit.data.folder import NOT_UTF8, SPLITS, Listing, Problem, content_share, shown
from vit.data.images import MEND
from vit.data.maskfiles import IDS, NO_ID, BadMask, Colours, Table, ids_of, mask_size, read_mask
from vit.data.maskforms import Layout, Pair, folders
from vit.errors import UserError

VOID_NAMES = {"void", "ignore", "ignored", "unlabeled", "unlabelled"}
FEW = 64  # pairs that are always looked at before a run compiles

Ids = Int[np.ndarray, "H W"]
Objects = UInt16[np.ndarray, "H W"] | None


class Fault(BadImage):
    """What is wrong with a pair: in which file, and what to do."""

    def __init__(self, what: str, where: str, fix: str):
        super().__init__(what)
        self.where, self.fix = where, fix


class Read(NamedTuple):
    """A pair, decoded: pixels, a class for each (255: void), and an object for each (0: none) where the set has objects."""

    image: UInt8[np.ndarray, "H W 3"]
    label: UInt8[np.ndarray, "H W"]
    instance: Objects


@dataclass(eq=False, kw_only=True)
class MaskListing(Listing):
    """A set with masks. Pair i is `pairs[i]`; `raw(i)` gives its mask as ids and objects, `table` makes classes of ids.

    `faults` has the file and the remedy of what is in `bad`. `seen` says which ids the training masks have, if they were read.
    """

    layout: Layout
    pairs: list[Pair]
    raw: Callable[[int], tuple[Ids, Objects]]
    size: Callable[[int], tuple[int, int]]
    table: Table = field(default_factory=lambda: Table({}, {VOID}, ""))
    things: list[bool] | None = None
    faults: dict[int, Fault] = field(default_factory=dict)
    seen: np.ndarray | None = None

    def where(self, i: int) -> str:
        """The file of pair i that an error speaks of."""
        return self.faults[i].where if i in self.faults else super().where(i)

    def note(self, i: int, fault: Fault) -> None:
        """Pair i is bad."""
        self.faults.setdefault(i, fault)
        self.bad.setdefault(i, str(fault))

    def ids(self, i: int) -> tuple[Ids, Objects]:
        """The mask of pair i, as ids. Raises `Fault`."""
        try:
            return self.raw(i)
        except BadImage as error:
            raise self.fault(i, error) from error

    def mask(self, i: int) -> tuple[UInt8[np.ndarray, "H W"], Objects]:
        """The mask of pair i, as classes. Raises `Fault`."""
        ids, instance = self.ids(i)
        try:
            return self.table.of(ids), instance
        except BadImage as error:
            raise self.fault(i, error) from error

    def fault(self, i: int, error: BadImage) -> Fault:
        """What is wrong with the mask of pair i."""
        if isinstance(error, Fault):
            return error
        where = shown(os.path.join(self.root, self.pairs[i].mask))
        return Fault(str(error), where, error.fix if isinstance(error, BadMask) else MEND)

    def pair(self, i: int) -> Read:
        """Pair i, decoded. Raises `Fault`."""
        if i in self.bad:
            raise self.faults.get(i) or Fault(self.bad[i], self.where(i), MEND)
        label, instance = self.mask(i)
        try:
            image = decode(self.read(i))
        except BadImage as error:
            raise Fault(str(error), super().where(i), MEND) from error
        self.fits(i, image.shape[:2], label.shape)
        return Read(image, label, instance)

    def fits(self, i: int, image: Iterable[int], mask: Iterable[int]) -> None:
        """Raise `Fault` if the sizes of an image and its mask differ."""
        (height, width), (h, w) = image, mask
        if (height, width) == (h, w):
            return
        what = f"the mask has {w} x {h} pixels, its image {width} x {height}"
        if (width, height) == (h, w) and header(self.read(i)).orientation >= 5:
            what += " once its EXIF has turned it"
        where = shown(os.path.join(self.root, self.pairs[i].mask))
        raise Fault(what, where, "make both of one size, each pixel of the mask for that of the image")


# ---- what lies in a folder ----

_OPEN: weakref.WeakValueDictionary[tuple[Any, ...], MaskListing] = weakref.WeakValueDictionary()


def opened(config: MaskData) -> MaskListing:
    """The listing, made and looked at quickly once for all sources in use. Raises `UserError` for its first fatal problem."""
    key = config.dir, config.names, config.void
    found = _OPEN.get(key)
    if found is None:
        from vit.data.maskcheck import quick  # which looks at listings

        found = listing(config)
        fail(found)
        named(found, config)
        quick(found)
        fail(found)
        if config.bad_images == "skip" or not found.bad:  # else somebody mends them first
            _OPEN[key] = found
    return found


def fail(found: Listing) -> None:
    """Raise `UserError` for the first fatal problem."""
    for what, where, fix, fatal in found.problems:
        if fatal:
            raise UserError(what, where, fix)


def find(root: Path) -> Layout | None:
    """What form of a set with masks lies in a folder, if any."""
    from vit.data import coco, masklists, masktfds

    return next((found for form in (masktfds.find, coco.find, masklists.find, folders) if (found := form(root))), None)


def listing(config: MaskData) -> MaskListing:
    """The pairs of a set with masks; what ids mean, `named` adds.

    Problems are part of the result; `UserError` is raised where there is nothing to list.
    """
    if not config.dir:
        raise UserError("--data.dir is missing", "the command line", "give a folder of images and masks")
    root = Path(config.dir).expanduser()
    if not root.is_dir():
        what = "this is a file, no folder of images and masks" if root.exists() else "there is no such folder"
        raise UserError(what, shown(str(root)), "give --data.dir, a folder of images and masks")
    layout = find(root)
    if layout is None:
        fix = "put masks into a folder masks beside images, with the names of their images"
        raise UserError("there are no masks in it, and no lists or JSON of COCO that name some", shown(str(root)), fix)
    return _listed(layout)


def _listed(layout: Layout) -> MaskListing:
    pairs = sorted(layout.pairs)
    problems = layout.problems
    if any(pair.split for pair in pairs) and not all(pair.split for pair in pairs):
        count = sum(not pair.split for pair in pairs)
        what = f"{count:,} images are in no split and are not used"
        problems.append(Problem(what, shown(str(layout.root)), "move them into a split", fatal=False))
        pairs = [pair for pair in pairs if pair.split]
    root, splits = layout.root, np.array([SPLITS.index(p.split) if p.split else -1 for p in pairs], np.int8)
    image = layout.image or (lambda pair: root / pair.image)
    mask = layout.mask or (lambda pair: root / pair.mask)

    def raw(i: int) -> tuple[Ids, Objects]:
        return ids_of(read_mask(mask(pairs[i])), None), None

    def painted(i: int) -> tuple[Ids, Objects]:
        return layout.paint(pairs[i]) if layout.paint else raw(i)

    def size(i: int) -> tuple[int, int]:
        return layout.size(pairs[i]) if layout.size else mask_size(mask(pairs[i]))

    found = MaskListing(
        form=layout.form, root=str(root), class_names=[], names=[pair.image for pair in pairs], splits=splits,
        labels=np.zeros(len(pairs), int), read=lambda i: image(pairs[i]), problems=problems, layout=layout, pairs=pairs,
        raw=painted, size=size,
    )  # fmt: skip
    for i, pair in enumerate(pairs):
        for name in (pair.image, pair.mask):
            if shown(name) != name:
                found.note(i, Fault(NOT_UTF8, shown(str(root / name)), "rename the file"))
    split_by_content(found)
    for split, k in (("train", 0), ("val", 1)):
        if not np.any(splits == k) and not any(problem.fatal for problem in problems):
            what = f"there are no images with masks to {'train on' if split == 'train' else 'validate with'}"
            problems.append(Problem(what, shown(str(root)), f"put some into a folder {split}, or add images"))
    return found


def split_by_content(found: MaskListing) -> None:
    """As for images without masks (docs/decisions/0008): 80:10:10 by the image's bytes, or val from train."""
    given = {int(k) for k in np.unique(found.splits)}
    if 1 in given:
        return
    if 2 in given:
        bounds, who = [0.9, 1.0], np.flatnonzero(found.splits == 0)
        found.form += ", val taken from train by content"
    else:
        bounds, who = [0.8, 0.9], np.arange(len(found.splits))
        found.form += ", split by content"

    def share(i: int) -> float:
        source, where = found.read(i), shown(os.path.join(found.root, found.names[i]))
        try:
            if isinstance(source, bytes) or source.is_file() or not source.exists():
                return content_share(source)
            found.note(i, Fault("it is not a file", where, MEND))  # a pipe would make us wait
        except OSError as error:
            found.note(i, Fault(f"it can't be read: {error.strerror}", where, MEND))
        return 0.0

    with ThreadPoolExecutor() as pool:
        found.splits[who] = np.searchsorted(bounds, list(pool.map(share, who.tolist(), chunksize=64)), side="right")


# ---- what ids mean ----


def named(found: MaskListing, config: MaskData) -> None:
    """Give the listing its table of classes. Raises `UserError` if there are no two classes, or over 255."""
    where, layout = shown(found.root), found.layout
    names, palette, source = _told(found, config)
    if len(names) == 2 and sorted(names) == [0, 1] and palette is None and layout.paint is None:
        seen = _seen(found, np.flatnonzero(found.splits == 0)[:FEW])
        if seen[0] and seen[255] and seen.sum() == 2:  # black and white, as binary masks often are
            names = {0: names[0], 255: names[1]}
    void = set(config.void)
    if config.void == MaskData.void:
        void = {number for number, name in names.items() if name.lower() in VOID_NAMES}
        void = void if len(names) - len(void) > 1 else set()
    if not names:
        found.seen = _seen(found, np.flatnonzero(found.splits == 0), "reading masks")
        names, void = _numbered(found, void | {255})
    if 255 not in names:
        void.add(255)
    fix = "mend the mask"
    if source:
        fix = f"give id {{}} a name in {source}" if source != "--data.names" else "give --data.names one for each id up to {}"
    extra = " ".join(map(str, sorted(void)))
    found.table = Table(names, void, f"{fix}, or make it void: --data.void {extra} {{}}")
    found.class_names, K = found.table.class_names, len(found.table.class_names)
    if K > 255:
        what = f"the masks have {K:,} classes, and at most 255 are possible"
        raise UserError(what, where, "take ids that are no class as void: --data.void, or give the names of the classes")
    if K < 2:
        what = f"--data.void {extra} leaves {'no class' if not K else 'only one class'} of {len(names)}"
        raise UserError(what, where, "leave at least two ids that are not void")
    if layout.things is not None:
        found.things = [number in layout.things for number in found.table.ids]
    _unseen(found)


def _told(found: MaskListing, config: MaskData) -> tuple[dict[int, str], legend.Legend | None, str]:
    """The names of ids as somebody gave them, the palette, and where the names are from; the listing reads by the palette."""
    layout, names = found.layout, dict(enumerate(config.names))
    palette, source = None, "--data.names" if names else ""
    if twice := [name for name in config.names if config.names.count(name) > 1]:
        raise UserError(f"--data.names has {twice[0]!r:.40} twice", "the command line", "give every class a name of its own")
    if layout.paint is None:
        told, palette = legend.find(layout.places)
        if palette is not None:
            colours = Colours(palette.colours)
            mask = layout.mask or (lambda pair: layout.root / pair.mask)
            found.raw = lambda i: (ids_of(read_mask(mask(found.pairs[i])), colours), None)
        for other in (told, palette):
            if other is not None and not names:
                names, source = other.names, other.file
    if layout.names is not None:
        if names and len(names) != len(layout.names):
            what = f"--data.names has {len(names)} names, and the set {len(layout.names)} classes"
            raise UserError(what, shown(found.root), "give as many, or leave --data.names out")
        names, source = dict(zip(layout.names, names.values() or layout.names.values(), strict=True)), ""
    return names, palette, source


def _numbered(found: MaskListing, void: set[int]) -> tuple[dict[int, str], set[int]]:
    """The names of ids that nobody named, from 0 to the largest that training masks have, and what is void."""
    seen = np.flatnonzero(found.seen).tolist() if found.seen is not None else []
    if seen == [0, 255] and void == {255}:  # black and white, as binary masks often are
        return {0: "0", 255: "255"}, set()
    classes = [number for number in seen if number not in void | {NO_ID}]
    if not classes:
        if found.bad:
            fail_at(found, min(found.bad))
        raise UserError("all pixels of the training masks are void", shown(found.root), "give other ids as --data.void")
    if len(classes) == 1:
        what = f"all pixels of the training masks have the id {classes[0]}, or are void"
        raise UserError(what, shown(found.root), "give masks of at least two classes")
    numbers = classes if classes[-1] > 254 else range(classes[-1] + 1)  # sparse ones may fit nevertheless
    return {number: str(number) for number in numbers if number not in void}, void


def fail_at(found: MaskListing, i: int) -> None:
    """Raise `UserError` for the bad pair i."""
    fault = found.faults.get(i) or Fault(found.bad[i], found.where(i), MEND)
    raise UserError(f"this image can't be used: {fault}", fault.where, fault.fix)


def _seen(found: MaskListing, who: Iterable[int], told: str = "") -> np.ndarray:
    """Which ids these masks have; those that can't be read are noted as bad."""
    seen = np.zeros(IDS, bool)

    def look(i: int) -> np.ndarray | Fault:
        try:
            ids = found.ids(i)[0]
        except Fault as fault:
            return fault
        here = np.zeros(IDS, bool)
        here[ids.ravel()] = True
        return np.flatnonzero(here)

    numbers = [int(i) for i in who if int(i) not in found.bad]
    console = Console(stderr=True)
    with ThreadPoolExecutor() as pool:
        looks = pool.map(look, numbers)
        for i, ids in zip(
            numbers, track(looks, told, len(numbers), console=console, transient=True, disable=not told), strict=True
        ):
            if isinstance(ids, Fault):
                found.note(i, ids)
            else:
                seen[ids] = True
    return seen


def _unseen(found: MaskListing) -> None:
    """Warn of classes that no training mask has."""
    if found.seen is None:
        return
    never = [name for name, number in zip(found.class_names, found.table.ids, strict=True) if not found.seen[number]]
    if never:
        what = f"{len(never)} of {len(found.class_names)} classes are in no training mask: {', '.join(never):.60}"
        fix = "give names to the ids that are classes, or take the others as void"
        found.problems.append(Problem(what, shown(found.root), fix, fatal=False))
