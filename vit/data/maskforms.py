"""Folders of images and of masks, in the ways that people lay them out: which mask belongs to which image.

The names of folders say what is what: `images/train`, `train/images`, `trainannot`, `gtFine/train/aachen`. A word of `MASKS`
or `IMAGES` decides what lies below, the deepest one; a split's name decides the split; what else a path has, and the file's
stem, must be the same for an image and its mask, but for the endings that masks have.
"""

import functools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vit.data.folder import DEEPEST, ENDINGS, SPLIT_NAMES, Problem, is_folder, shown
from vit.errors import UserError

IMAGES = {"images", "image", "imgs", "img", "jpegimages", "leftimg8bit", "rgb", "photos", "pictures", "frames", "inputs"}
MASKS = {"masks", "mask", "labels", "label", "labels_ids", "label_ids", "labelids", "gt", "gts", "gtfine", "seg", "segs"}
MASKS |= {"annotations", "annotation", "annots", "annot", "segmentation", "segmentations", "segmentationclass", "segmaps"}
MASKS |= {"segmentationclassaug", "segmentationclassraw", "segmentation_masks", "ground_truth", "groundtruth", "trimaps"}
MASKS |= {"labelimages", "targets", "semantic"}
UNUSED = {"segmentationobject", "gtcoarse"}  # of layouts that are known: not what is looked for
_split = "|".join(sorted(SPLIT_NAMES, key=len, reverse=True))
_role = "|".join(sorted(IMAGES | MASKS, key=len, reverse=True))
FOLDER = [
    re.compile(rf"(?P<split>{_split})?(?:\d{{4}})?[-_. ]?(?P<role>{_role})?"),
    re.compile(rf"(?P<role>{_role})[-_. ]?(?P<split>{_split})?(?:\d{{4}})?"),
]
OTHER = re.compile(r"_gt(Fine|Coarse)_(color|instanceIds|instanceTrainIds)$")  # beside Cityscapes' masks
ENDING = re.compile(
    r"(_gt(fine|coarse))?[-_. ](label_?(train_?)?ids|masks?|labels?|l|p|gt|seg|segmentation|annot(ation)?|ids|manual|class)$",
    re.I,
)
START = re.compile(r"^(masks?|labels?|gt|seg|annot)[-_. ]", re.I)
IMAGE_ENDING = re.compile(r"[-_. ](leftimg8bit|images?|img|rgb|sat)$", re.I)
IMAGE_START = re.compile(r"^(images?|img)[-_. ]", re.I)


class Pair(NamedTuple):
    """An image and its mask, by their names below the root, and its split, or "" where nobody split."""

    image: str
    mask: str
    split: str = ""


@dataclass
class Layout:
    """What a form found. `paint(pair)` gives ids and objects where masks are no files of ids; `names` are the form's own."""

    form: str
    root: Path
    pairs: list[Pair]
    problems: list[Problem]
    places: list[Path] = field(default_factory=list)  # where names and palettes may lie
    names: dict[int, str] | None = None
    things: set[int] | None = None  # ids that are counted as objects
    image: Callable[[Pair], Path | bytes] | None = None
    mask: Callable[[Pair], Path | bytes] | None = None
    paint: Callable[[Pair], tuple[Any, Any]] | None = None
    size: Callable[[Pair], tuple[int, int]] | None = None


class File(NamedTuple):
    """A file of pixels. `role` is image, mask or ""; `place` what else its path has; `group` the folder that gives its role."""

    name: str
    role: str
    split: str
    place: tuple[str, ...]
    stem: str
    group: str


def walked(root: Path, endings: set[str]) -> list[str]:
    """The names below the root of files with these endings, sorted; links that lead back aren't followed."""

    def walk(folder: str, name: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
        status = os.stat(folder)
        identity = status.st_dev, status.st_ino
        if identity in above or len(above) > DEEPEST:
            return
        with os.scandir(folder) as files:
            entries = sorted((f for f in files if not f.name.startswith((".", "__MACOSX"))), key=lambda f: f.name)
        for file in entries:
            below = os.path.join(name, file.name)
            if is_folder(file):
                yield from walk(file.path, below, (*above, identity))
            elif os.path.splitext(file.name)[1].lower() in endings:
                yield below

    return list(walk(str(root), "", ()))


def sorted_out(name: str) -> File:
    """What the path of a file says of it."""
    folder, last = os.path.split(name)
    role, split, place, group = _folder(folder)
    stem = os.path.splitext(last)[0]
    return File(name, "unused" if role == "mask" and OTHER.search(stem) else role, split, place, stem, group)


@functools.lru_cache(10_000)
def _folder(path: str) -> tuple[str, str, tuple[str, ...], str]:
    """Role, split, place and group of the files in a folder."""
    role = split = group = ""
    place: list[str] = []
    for folder in path.split(os.sep) if path else []:
        low = folder.lower()
        match = next((m for p in FOLDER if (m := p.fullmatch(low)) and (m["role"] or m["split"])), None)
        word = low if low in IMAGES | MASKS else match["role"] if match else None
        if low in UNUSED:
            role, group = "unused", low
            continue
        if match and match["split"]:
            split = SPLIT_NAMES[match["split"]]
        if word:
            role, group = ("mask" if word in MASKS else "image"), "/".join([*place, word])
        elif not match:
            place.append(folder)
    return role, split, tuple(place), group


def folders(root: Path) -> Layout | None:
    """The pairs of a folder; None if it has no folder of masks. Raises `UserError` if there is nothing to pair."""
    files = [sorted_out(name) for name in walked(root, ENDINGS)]
    masks = [file for file in files if file.role == "mask"]
    if not masks:
        files, masks = _beside(files)
    if not masks:
        return None
    images = [file for file in files if file.role == "image"]
    having = {file.split for file in images}
    images += [file for file in files if not file.role and file.split and file.split not in having]
    images = images or [file for file in files if not file.role]  # beside a folder of masks only
    where = shown(str(root))
    if not images:
        what = f"there are masks, as {shown(masks[0].name)!r:.60}, and no images"
        raise UserError(what, where, "put the images into a folder images beside the masks")
    problems: list[Problem] = []
    pairs = paired(images, masks, root, problems)
    if not pairs:
        what = f"no image has a mask: {shown(images[0].name)!r:.60} and {shown(masks[0].name)!r:.60} have no name in common"
        raise UserError(what, where, "give each mask the name of its image")
    return Layout(f"images with masks in {tops(pairs)}", root, pairs, problems, near(root, pairs))


def _beside(files: list[File]) -> tuple[list[File], list[File]]:
    """Where no folder is of masks: `x.jpg` and `x_mask.png` in one folder, as images and masks."""
    have = {(os.path.dirname(file.name), key): file for file in files for key in keys(file.stem, False)}
    masks = []
    for file in files:
        bare = ENDING.sub("", file.stem)
        image = have.get((os.path.dirname(file.name), bare))
        if bare != file.stem and file.name.lower().endswith(".png") and image is not None and image != file:
            masks.append(file._replace(role="mask", group=os.path.dirname(file.name) or "the folder of the images"))
    names = {mask.name for mask in masks}
    return [file._replace(role="image") for file in files if file.name not in names], masks


def tops(pairs: list[Pair]) -> str:
    """The folders of masks, in words."""
    places = {}
    for pair in pairs:
        parts = os.path.dirname(pair.mask).split(os.sep)
        last = min((i for i in range(len(parts)) if sorted_out(os.path.join(*parts[: i + 1], "x")).role == "mask"), default=0)
        places["/".join(parts[: last + 1]) or "the same folder"] = None
    names = [shown(place) for place in sorted(places)]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def near(root: Path, pairs: list[Pair]) -> list[Path]:
    """The root, and the folders of the masks from the nearest up, which may hold names and palettes."""
    places = {Path(pair.mask).parent for pair in pairs[:: max(1, len(pairs) // 50)]}
    ups = {up for place in places for up in (place, *place.parents)}
    beside = {"annotations", "labels", "masks"}
    more = [root / name for name in sorted(beside) if (root / name).is_dir()]
    return [root, *(root / up for up in sorted(ups, key=lambda p: (-len(p.parts), p)) if up != Path(".")), *more]


def keys(stem: str, mask: bool) -> list[str]:
    """The stem, and the stem without what says that it's a mask, or an image: an image and its mask share one."""
    ending, start = (ENDING, START) if mask else (IMAGE_ENDING, IMAGE_START)
    bare = ending.sub("", stem)
    return list(dict.fromkeys(key for key in (stem, bare, start.sub("", bare)) if key))


Index = dict[tuple[Any, ...], list[File]]


def indexed(masks: list[File]) -> Index:
    """Masks by what an image that belongs to one may know of it: split, place and stem, or less."""
    index: Index = defaultdict(list)
    for mask in masks:
        for key in keys(mask.stem, True):
            for place in ((mask.split, mask.place), (mask.split, None), (None, mask.place), (None, None)):
                index[*place, key].append(mask)
    return index


def masks_of(image: File, index: Index, root: Path) -> list[File]:
    """The masks that could be an image's: those of the same split, place and stem, or else of what is nearest to that.

    Raises `UserError` if folders compete.
    """
    for place in ((image.split, image.place), (image.split, None), (None, image.place), (None, None)):
        for key in keys(image.stem, False):
            found = index.get((*place, key), [])
            if place[0] is None and image.split:  # masks that nobody split
                found = [mask for mask in found if not mask.split]
            if not found:
                continue
            if len(groups := sorted({mask.group for mask in found})) > 1:
                what = f"several folders hold a mask of {shown(image.name)!r:.60}: {', '.join(map(shown, groups)):.100}"
                raise UserError(what, shown(str(root)), "leave one of them there, or move the others out")
            exact = [mask for mask in found if mask.stem == key] or found
            # Of Cityscapes' ids those for training, whose void is 255.
            return [mask for mask in exact if re.search(r"train_?ids$", mask.stem, re.I)] or exact
    return []


def doubtful(image: File, found: list[File], root: Path) -> Problem:
    """An image that several masks could belong to."""
    what = f"several masks could be its: {', '.join(shown(mask.name) for mask in found[:3]):.150}"
    return Problem(what, shown(str(root / image.name)), "leave one of them, with the name of its image")


def paired(images: list[File], masks: list[File], root: Path, problems: list[Problem]) -> list[Pair]:
    """Each image with its mask; whatever has none, or more than one, becomes a problem."""
    index, pairs, used, lonely, told = indexed(masks), [], {}, [], set()
    for image in images:
        found = masks_of(image, index, root)
        if not found:
            lonely.append(image)
        elif len(found) > 1:
            problems.append(doubtful(image, found, root))
            told |= {mask.name for mask in found}
        elif (mask := found[0]).name in used:
            what = f"this mask could be that of {shown(used[mask.name])!r:.60} and of {shown(image.name)!r:.60}"
            problems.append(Problem(what, shown(str(root / mask.name)), "give each image a mask of its own"))
        else:
            used[mask.name] = image.name
            pairs.append(Pair(image.name, mask.name, image.split or mask.split))
    if not pairs:
        return pairs
    without_masks(lonely, {pair.split for pair in pairs}, root, problems)
    # Cityscapes' masks of one image in other codes stand beside the one that is used.
    told |= used.keys()
    beside = {(os.path.dirname(mask.name), key) for mask in masks if mask.name in told for key in keys(mask.stem, True)}
    for mask in masks:
        if mask.name not in told and not any((os.path.dirname(mask.name), key) in beside for key in keys(mask.stem, True)):
            problems.append(Problem("this mask has no image", shown(str(root / mask.name)), "add its image, or remove it"))
    return pairs


def without_masks(images: list[File], splits: set[str], root: Path, problems: list[Problem]) -> None:
    """A problem for each image without a mask; a test split that has none at all is left out, as many sets keep its masks."""
    test = [image for image in images if image.split == "test" and "test" not in splits]
    if test:
        what = f"the {len(test):,} images of test have no masks and are not used"
        problems.append(Problem(what, shown(str(root)), "add their masks", fatal=False))
    for image in images:
        if image not in test:
            problems.append(Problem("this image has no mask", shown(str(root / image.name)), "add its mask, or remove it"))
