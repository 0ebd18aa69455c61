"""Lists of images with masks: VOC's `ImageSets/Segmentation/train.txt`, or `train.txt`, `val.txt`, `test.txt` in the root.

A line is the stem or path of an image, whose mask is found as in folders, or the paths of both. Paths are relative to the root,
or to the list; of a path from another machine the trailing parts that are here count. An ending may differ.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vit.data.folder import ENDINGS, SPLIT_NAMES, Problem, shown
from vit.data.maskforms import (
    File,
    Index,
    Layout,
    Pair,
    doubtful,
    indexed,
    masks_of,
    near,
    sorted_out,
    tops,
    walked,
    without_masks,
)
from vit.errors import UserError

FOLDERS = ("ImageSets/Segmentation", "ImageSets", "splits", "lists", "")


class Here(NamedTuple):
    """What lies below a root: files by name, and by the stems of their last parts; the masks that stems lead to."""

    root: Path
    files: dict[str, File]
    stems: dict[str, list[File]]
    masks: Index


def find(root: Path) -> Layout | None:
    """The pairs that lists name; None where there are no lists of images with masks."""
    base = base_of(root, FOLDERS[0])
    lists = next((lists for place in FOLDERS if (lists := lists_in(base / place))), {})
    if not lists:
        return None
    return _read(base, lists)


def base_of(root: Path, folder: str) -> Path:
    """The folder that has lists in `folder`, at most two below the root; else the root. Raises `UserError` if several have."""
    places = [root, *sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))]
    places += [p for place in places[1:] if place.name.lower().startswith("voc") for p in sorted(place.iterdir()) if p.is_dir()]
    having = [place for place in places if any((place / folder / f"{name}.txt").is_file() for name in SPLIT_NAMES)]
    if len(having) > 1:
        names = ", ".join(shown(str(place.relative_to(root))) for place in having)
        raise UserError(f"several sets with lists are in it: {names:.120}", shown(str(root)), "give one of them as --data.dir")
    return having[0] if having else root


def lists_in(folder: Path) -> dict[str, Path]:
    """The lists of a folder by split. Raises `UserError` if two are of one split."""
    lists: dict[str, Path] = {}
    for name, split in SPLIT_NAMES.items():
        if (path := folder / f"{name}.txt").is_file():
            if split in lists:
                what = f"two lists are the same split: {lists[split].name}, {path.name}"
                raise UserError(what, shown(str(folder)), "leave one of train.txt, one of val.txt, one of test.txt")
            lists[split] = path
    return lists


def _read(root: Path, lists: dict[str, Path]) -> Layout | None:
    files = [sorted_out(name) for name in walked(root, ENDINGS)]
    masks = [file for file in files if file.role == "mask"]
    here = looked(root, files)._replace(masks=indexed(masks))
    problems: list[Problem] = []
    pairs: dict[str, tuple[Pair, str]] = {}
    lonely: list[File] = []
    doubles = False
    for split, path in lists.items():
        lines = list(lines_of(path, problems))
        if not lines:
            problems.append(Problem("this list is empty", shown(str(path)), "put the names of images into it, or remove it"))
        for number, line in lines:
            where = f"{shown(str(path))}, line {number}"
            image, mask, told = _line(line, here, path.parent, where)
            doubles |= mask is not None or len(re.split(r"[\s,;]+", line)) == 2
            if told is not None:
                problems.append(told)
            elif image is not None and mask is None:
                lonely.append(image._replace(split=split))
            elif image is not None and mask is not None:
                if image.name in pairs:
                    what = f"{shown(image.name)!r:.60} stands in {pairs[image.name][1]} too"
                    problems.append(Problem(what, where, "leave one of the two lines"))
                    continue
                pairs[image.name] = Pair(image.name, mask.name, split), f"{path.name}, line {number}"
    if not masks and not doubles:
        return None  # lists of something else
    found = [pair for pair, _ in pairs.values()]
    if "train" not in lists and found and not any(file.split for file in files):  # what no list names
        rest = [file for file in files if file.role == "image" and file.name not in pairs]
        found += [Pair(file.name, mask.name, "train") for file in rest for mask in masks_of(file, here.masks, root)[:1]]
    without_masks(lonely, {pair.split for pair in found}, root, problems)
    if not found:
        what, where, fix, _ = problems[0]
        raise UserError(what, where, fix)
    form = f"lists {', '.join(path.name for path in lists.values())} of images with masks in {tops(found)}"
    return Layout(form, root, found, problems, near(root, found))


def looked(root: Path, files: list[File]) -> Here:
    """These files, to be looked up."""
    stems: dict[str, list[File]] = defaultdict(list)
    for file in files:
        if file.role in ("image", ""):
            parts = os.path.splitext(file.name)[0].split(os.sep)
            for i in range(len(parts)):
                stems["/".join(parts[i:])].append(file)
    return Here(root, {file.name: file for file in files}, stems, {})


def lines_of(path: Path, problems: list[Problem]) -> Iterator[tuple[int, str]]:
    """The lines of a list that say something, with their numbers."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig").strip()
            except UnicodeDecodeError:
                where = f"{shown(str(path))}, line {number}"
                problems.append(Problem("this line is not UTF-8", where, "save the list as UTF-8"))
                continue
            if text and not text.startswith("#"):
                yield number, text


def _line(line: str, here: Here, beside: Path, where: str) -> tuple[File | None, File | None, Problem | None]:
    """The image and the mask that a line names; the mask is None where it names an image that has none."""
    parts = _parts(line, here, beside)
    if len(parts) > 2 or "\0" in line:
        what = f"this line has {len(parts)} values: {line!r:.80}"
        return None, None, Problem(what, where, "give the path of an image, or of an image and of its mask")
    files = [file_of(part, here, beside) for part in parts]
    for part, file in zip(parts, files, strict=True):
        if isinstance(file, str):
            fix = "mend the line, or add the file" if "isn't there" in file else "mend the line"
            return None, None, Problem(f"{shown(part)!r:.80} {file}", where, fix)
    image, mask = (*files, None)[:2]
    if not isinstance(image, File) or isinstance(mask, str):
        return None, None, None
    if mask is None:
        masks = masks_of(image, here.masks, here.root)
        if len(masks) > 1:
            return None, None, doubtful(image, masks, here.root)
        mask = masks[0] if masks else None
    return image, mask, None


def _parts(line: str, here: Here, beside: Path) -> list[str]:
    """What stands on a line between marks or blanks; names may have blanks of their own."""
    if line in here.files or os.path.splitext(line)[0] in here.stems:
        return [line]
    if len(parts := [part for part in re.split(r"\s*[\t,;]\s*", line) if part]) == 2:
        return parts
    parts = line.split()
    for i in range(1, len(parts) if 2 < len(parts) < 20 else 0):
        halves = [" ".join(parts[:i]), " ".join(parts[i:])]
        if all(isinstance(file_of(half, here, beside), File) for half in halves):
            return halves
    return parts


def file_of(name: str, here: Here, beside: Path) -> File | str:
    """The file that a path or a stem names, or why there is none."""
    root = os.path.abspath(here.root)
    path = os.path.normpath(os.path.join(root, name.replace("\\", "/")))
    inside = path.startswith(os.path.join(root, ""))
    outside = "leads out of the folder of the set"
    if not inside and (not os.path.isabs(name) or os.path.exists(path)):
        near = os.path.normpath(os.path.join(os.path.abspath(beside), name))  # from the list's own folder it may not
        if not near.startswith(os.path.join(root, "")):
            return outside
        path, inside = near, True
    parts = [part for part in (os.path.relpath(path, root) if inside else path).split(os.sep) if part]
    for i in range(len(parts)):  # the whole path, or its end
        if (file := here.files.get(os.path.join(*parts[i:]))) is not None:
            return file
    near = os.path.relpath(os.path.join(os.path.abspath(beside), name), root)
    if near in here.files:
        return here.files[near]
    bare = [*parts[:-1], os.path.splitext(parts[-1])[0] if parts and _is_ending(parts[-1]) else "".join(parts[-1:])]
    for i in range(len(bare)):
        found = here.stems.get("/".join(bare[i:]), [])
        found = [file for file in found if file.role == "image"] or found
        if len(found) == 1:
            return found[0]
        if found:
            return f"could be {shown(found[0].name)!r:.60} and {shown(found[1].name)!r:.60}"
    return "isn't there"


def _is_ending(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in ENDINGS
