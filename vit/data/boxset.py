"""What lies in an image set with boxes: every image with its boxes and split, the classes, and what is wrong there.

The forms that are found, and the rules for ids, names and splits: docs/decisions/0016.
"""

import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vit.config import BoxData
from vit.data import boxcoco, boxtfds, boxvoc, boxyolo
from vit.data.boxforms import Boxes, Sheet, sizes_said, turned
from vit.data.decode import BadImage, Header, decode, header
from vit.data.folder import NOT_UTF8, SPLITS, Listing, Problem, shown, split_by_content
from vit.errors import UserError

SHOULD = "put images with boxes into it"


@dataclass(eq=False, kw_only=True)
class BoxListing(Listing):
    """A set with boxes. Image i has `boxes[i]`, whose kinds are class numbers; `told[i]` is the size that its annotation says.

    `flaws` are what is wrong with the annotations and left out with `--data.bad-boxes drop`. `image_ids` and `class_ids` are
    those of COCO's JSON, or of other forms the places in the listing, and the numbers from 1 on.
    """

    boxes: list[Boxes]
    told: list[tuple[int, int] | None]
    flaws: list[Problem]
    clipped: int
    image_ids: list[int | str]
    class_ids: list[int]

    def pair(self, i: int) -> tuple[UInt8[np.ndarray, "H W 3"], Boxes]:
        """Image i, decoded, and its boxes as they lie on it. Raises `BadImage`."""
        if i in self.bad:
            raise BadImage(self.bad[i])
        source = self.read(i)
        image = decode(source)
        if self.told[i] in (None, image.shape[:2]):
            return image, self.boxes[i]
        return image, self.fitted(i, header(source))

    def fitted(self, i: int, found: Header | None = None) -> Boxes:
        """The boxes of image i as they lie on it once it is upright. Raises `BadImage` if it is of another size than told."""
        found = found or header(self.read(i))
        stored, told = (found.height, found.width), self.told[i]
        size = (found.width, found.height) if found.orientation >= 5 else stored
        if told in (None, size):
            return self.boxes[i]
        if told != stored:
            raise BadImage(f"its annotation is of {sizes_said(told)} pixels, and it has {sizes_said(size)}")
        return self.boxes[i]._replace(corners=turned(self.boxes[i].corners, found.orientation))


_OPEN: weakref.WeakValueDictionary[tuple[Any, ...], BoxListing] = weakref.WeakValueDictionary()


def opened(config: BoxData) -> BoxListing:
    """The listing, made and looked at quickly once for all sources in use. Raises `UserError` for the first thing fatal."""
    key = config.dir, config.annotations, config.names
    found = _OPEN.get(key)
    if found is None:
        from vit.data.boxcheck import quick  # which looks at listings

        found = listing(config)
        fail(found, config)
        quick(found)
        _OPEN[key] = found
    fail(found, config)
    return found


def fail(found: BoxListing, config: BoxData) -> None:
    """Raise `UserError` for the first thing that ends a run."""
    for what, where, fix, fatal in found.problems:
        if fatal:
            raise UserError(what, where, fix)
    if found.flaws and config.bad_boxes == "error":
        what, where, fix, _ = found.flaws[0]
        more = f" ({len(found.flaws):,} such, vit check lists them)" if len(found.flaws) > 1 else ""
        raise UserError(what, where, f"{fix}{more}, or go on without: --data.bad-boxes drop")


def sheet(config: BoxData) -> Sheet:
    """What a form finds, the first that finds something. Raises `UserError` where none does."""
    root = Path(config.dir).expanduser() if config.dir else None
    if root is not None and not root.is_dir():
        what = "this is a file, no folder of images" if root.exists() else "there is no such folder"
        raise UserError(what, shown(str(root)), "give --data.dir, a folder of images with annotations")
    if config.annotations:
        return boxcoco.read(Path(config.annotations).expanduser(), root)
    if root is None:
        raise UserError("--data.dir is missing", "the command line", "give a folder of images, or --data.annotations FILE.json")
    for found in (boxtfds.find(root), boxcoco.find(root)):
        if found is not None:
            return found
    found = boxvoc.find(root, config.names) or boxyolo.find(root, config.names)
    if found is None:
        what = "there are no images with boxes in it: no JSON of COCO's, no XML of VOC's, no TXT of YOLO's"
        raise UserError(what, shown(str(root)), "put annotations of one of these forms beside the images")
    return found


def has_boxes(folder: str) -> bool:
    """Whether a folder is meant as a set with boxes, or a file as its annotations."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        return root.suffix == ".json"
    try:
        below = boxtfds.below(root)
        if below is not None:
            return '"objects"' in (below / "features.json").read_text()
        return bool(boxcoco.chosen_of(boxcoco.loaded(root))) or boxvoc.has_xml(root) or boxyolo.has_labels(root)
    except UserError:
        return True  # annotations, damaged ones


def listing(config: BoxData) -> BoxListing:
    """The images of a set with boxes. Problems are part of the result; `UserError` is raised where there is nothing to list."""
    made = sheet(config)
    images = sorted(made.images, key=lambda image: image.image)
    where = shown(str(made.root))
    if any(image.split for image in images) and not all(image.split for image in images):
        count = sum(not image.split for image in images)
        made.note(f"{count:,} images are in no split and are not used", where, "move them into a split")
        images = [image for image in images if image.split]
    test = [image for image in images if image.split == "test"]
    if test and not any(len(image.boxes.kinds) for image in test):
        made.note(f"the {len(test):,} images of test have no boxes and are not used", where, "add their boxes")
        images = [image for image in images if image.split != "test"]
    names = [made.names[kind] for kind in sorted(made.names)]
    if config.names and len(config.names) != len(names):
        what = f"--data.names has {len(config.names)} names, and the set {len(names)} classes"
        raise UserError(what, where, "give as many, or leave --data.names out")
    files = [image.image for image in images]
    order = np.array(sorted(made.names), np.int64)
    coco = any(image.number is not None for image in images)
    found = BoxListing(
        form=made.form, root=str(made.root), class_names=list(config.names) or names, names=files,
        labels=np.zeros(len(images), int),
        splits=np.array([SPLITS.index(image.split) if image.split else -1 for image in images], np.int8),
        read=lambda i: made.read(files[i]) if made.read else made.root / files[i], problems=made.problems,
        boxes=[image.boxes._replace(kinds=np.searchsorted(order, image.boxes.kinds).astype(np.int32)) for image in images],
        told=[image.size for image in images], flaws=made.flaws, clipped=made.clipped,
        image_ids=[image.number if image.number is not None else i for i, image in enumerate(images)],
        class_ids=order.tolist() if coco else list(range(1, len(order) + 1)),
    )  # fmt: skip
    _unreadable(found, made)
    split_by_content(found)
    _faults(found)
    return found


def _unreadable(found: BoxListing, made: Sheet) -> None:
    """Note images that are no files, which must not be opened, and names that can't be printed."""
    for i, name in enumerate(found.names):
        path = os.path.join(found.root, name)
        if shown(name) != name:
            found.bad[i] = NOT_UTF8
        elif made.read is None and not os.path.isfile(path):
            found.bad[i] = "it is a link that leads nowhere" if os.path.islink(path) else "it is not a file"


def _faults(found: BoxListing) -> None:
    """What keeps a detector from being trained on these."""
    where, K = shown(found.root), len(found.class_names)
    counts = counted(found)
    names = found.class_names
    if twice := [name for name in names if names.count(name) > 1]:
        found.problems.append(Problem(f"two classes are called {twice[0]!r:.40}", where, "give every class a name of its own"))
    for k, split in enumerate(SPLITS[:2]):
        if not counts[k].sum():
            what = f"there are no boxes to {'train on' if split == 'train' else 'validate with'}"
            by_content = "by content" in found.form
            fix = "add images with boxes" if by_content else f"put images with boxes into the {split} split"
            found.problems.append(Problem(what, where, fix))
    if counts[0].any() and (never := [name for name, n in zip(names, counts[0], strict=True) if not n]):
        what = f"{len(never)} of {K} classes have no box to train on: {', '.join(never):.60}"
        found.problems.append(Problem(what, where, "add images of them", fatal=False))


def counted(found: BoxListing) -> np.ndarray:
    """The boxes of each split (rows) and class that are no crowds."""
    counts = np.zeros((len(SPLITS), len(found.class_names)), np.int64)
    for split, boxes in zip(found.splits, found.boxes, strict=True):
        counts[split] += np.bincount(boxes.kinds[~boxes.crowd], minlength=counts.shape[1])
    return counts
