"""Boxes in YOLO's form: a TXT for each image, with lines of class, centre x and y, width and height in shares of the image.

The TXT of images/train/a.jpg is labels/train/a.txt, or lies beside the image. A line of more points is a polygon, whose box
counts.
"""

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vit.data import boxyaml, legend
from vit.data.boxforms import Row, Sheet
from vit.data.folder import ENDINGS, SPLIT_NAMES, shown
from vit.data.maskforms import IMAGES, File, sorted_out, walked
from vit.data.masklists import Here, file_of, lines_of, lists_in, looked
from vit.errors import UserError

FIX = "give class, centre x, centre y, width and height, as shares of the image's"
BEGINS = re.compile(rb"\s*\d+(\.0+)?(\s+[-+.\deE]+){4,}\s*(\r?\n|$)")
BOM = b"\xef\xbb\xbf"
OTHERS = {*legend.NAMES, "readme.txt", "notes.txt", *(f"{name}.txt" for name in SPLIT_NAMES)}


class _Labels(NamedTuple):
    """The TXT files below a root: by name, and by split and stem those in folders called labels."""

    names: set[str]
    stems: dict[tuple[str, str], list[str]]

    def of(self, image: File) -> str | None:
        """An image's TXT; "" if it has none, but lies beside a folder of labels; None if nobody labelled it."""
        parts = os.path.splitext(image.name)[0].split(os.sep)
        for i in reversed(range(len(parts) - 1)):
            if (
                parts[i].lower() in IMAGES
                and (name := os.sep.join([*parts[:i], "labels", *parts[i + 1 :]]) + ".txt") in self.names
            ):
                return name
        if (name := os.sep.join(parts) + ".txt") in self.names:
            return name
        those = self.stems.get((image.split, image.stem)) or self.stems.get(("", image.stem), [])
        return those[0] if len(those) == 1 else "" if self.stems else None


def _labels(root: Path) -> _Labels:
    names = walked(root, {".txt"})
    index: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in names:
        if "labels" in (part.lower() for part in name.split(os.sep)[:-1]):
            index[_split_of(name), os.path.splitext(os.path.basename(name))[0]].append(name)
    return _Labels(set(names), index)


def _split_of(name: str) -> str:
    return sorted_out(name).split


def has_labels(root: Path) -> bool:
    """Whether a folder has a data.yaml, or images with such TXT files."""
    if boxyaml.find(root) is not None:
        return True
    labels = _labels(root)
    names = [name for image in walked(root, ENDINGS) if (name := labels.of(sorted_out(image)))]
    starts = [start for name in names if (start := _start(root / name))]
    return 2 * sum(bool(BEGINS.match(start)) for start in starts) > len(starts)


def _start(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(2**12).removeprefix(BOM).lstrip()


def find(root: Path, names: tuple[str, ...]) -> Sheet | None:
    """The images of a folder, with the boxes of their TXT files; None where there are none."""
    if not has_labels(root):
        return None
    yaml = boxyaml.find(root)
    told = boxyaml.read(yaml) if yaml else {}
    files = [sorted_out(name) for name in walked(root, ENDINGS)]
    made, labels = Sheet("YOLO's TXT", root), _labels(root)
    splits, here = {}, looked(root, files)
    if yaml is not None:
        made.form += f" with {yaml.name}"
        splits = _by_yaml(root, yaml, told, here, made)
    elif lists := lists_in(root):
        made.form += f", lists {', '.join(path.name for path in lists.values())}"
        for split, path in lists.items():
            splits |= dict.fromkeys(_by_list(path, path, here, made), split)
    chosen = [file._replace(split=splits[file.name]) for file in files if file.name in splits] if splits else files
    given = dict(enumerate(names)) or _names(root, yaml, told, labels)
    pairs = _pairs(chosen, labels, made)
    made.names = given or {n: str(n) for n in range(1 + max((n for _, name in pairs for n in _seen(root, name)), default=-1))}
    for image, name in pairs:
        made.add(image.name, image.split, _rows(root, name, made) if name else (), fix=FIX)
    used = {name for _, name in pairs} | {labels.of(file) for file in files}
    for name in sorted(labels.names - used):
        folders = [part.lower() for part in name.split(os.sep)[:-1]]
        if "labels" in folders and os.path.basename(name).lower() not in OTHERS:
            made.flaw("these labels have no image", shown(str(root / name)), "add the image, or remove the file")
    return made


def _pairs(images: list[File], labels: _Labels, made: Sheet) -> list[tuple[File, str]]:
    """Each image with its TXT, "" if it has no boxes."""
    pairs, used, alone = [], {}, []
    for image in images:
        name = labels.of(image)
        if name is None:
            alone.append(image)
        elif name and name in used:
            what = f"its labels {shown(name)!r:.60} are those of {shown(used[name])!r:.60}, too"
            made.flaw(what, shown(str(made.root / image.name)), "leave one of the two")
        else:
            pairs.append((image, name))
            used |= {name: image.name}
    if alone:
        what = f"{len(alone):,} images have no labels and are not used, as {shown(alone[0].name)!r:.60}"
        made.note(what, shown(str(made.root)), "add an empty TXT for those that show nothing")
    return pairs


# ---- splits and names ----


def _by_yaml(root: Path, yaml: Path, told: dict[str, boxyaml.Value], here: Here, made: Sheet) -> dict[str, str]:
    """The splits of images, by name, as a data.yaml has them: folders, or lists."""
    splits: dict[str, str] = {}
    base = told["path"].content if "path" in told and isinstance(told["path"].content, str) else ""
    for key, (content, line) in told.items():
        if key not in SPLIT_NAMES:
            continue
        for value in filter(None, content if isinstance(content, list) else [content]):
            where = f"{shown(str(yaml))}, line {line}"
            place = _place(root, base, value) if isinstance(value, str) else None
            if place is None:
                if SPLIT_NAMES[key] != "test":  # which many keep for themselves
                    raise UserError(f"{key} is {value!r:.80}, which isn't there", where, "mend the path, or add the folder")
                continue
            if place.is_file():
                names = _by_list(place, yaml, here, made)
            else:
                top = "" if place == root else os.path.join(os.path.relpath(place, root), "")
                names = [name for name in here.files if name.startswith(top)]
            for name in names:
                if splits.setdefault(name, SPLIT_NAMES[key]) != SPLIT_NAMES[key]:
                    what = f"{shown(name)!r:.60} is in {splits[name]} and in {SPLIT_NAMES[key]}"
                    raise UserError(what, where, "give every split a folder of its own")
    return splits


def _place(root: Path, base: str, value: str) -> Path | None:
    """The folder or list that a data.yaml names: of a path from another machine the trailing parts that are here count."""
    parts = [part for part in f"{base}/{value}".replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for i in range(len(parts)):
        path = root.joinpath(*parts[i:])
        if path.exists():
            return path
    return None if parts else root


def _by_list(path: Path, beside: Path, here: Here, made: Sheet) -> Iterator[str]:
    """The names of the images that a list names."""
    for n, line in lines_of(path, made.flaws):
        file = file_of(line, here, beside.parent)
        if isinstance(file, File):
            yield file.name
        else:
            made.flaw(f"{shown(line)!r:.80} {file}", f"{shown(str(path))}, line {n}", "mend the line, or add the file")


def _names(root: Path, yaml: Path | None, told: dict[str, boxyaml.Value], labels: _Labels) -> dict[int, str]:
    """The names of the classes, by data.yaml or classes.txt; {} where there are none."""
    if yaml is not None and "names" in told and told["names"].content != "":
        content, line = told["names"]
        where = f"{shown(str(yaml))}, line {line}"
        if isinstance(content, str) or not all(content.values() if isinstance(content, dict) else content):
            raise UserError("its names are no list of names", where, "give names as a list, or as 0: cat")
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        names = {int(n): name for n, name in pairs if str(n).isdecimal() and len(str(n)) < 9}
        if isinstance(content, dict) and len(names) < len(content):
            raise UserError("its names are not by numbers", where, "give names as 0: cat, or as a list")
        count = told["nc"].content if "nc" in told else str(len(names))
        if count != str(len(names)):
            what = f"nc is {count!r:.20}, and there are {len(names)} names"
            raise UserError(what, where, "give nc as many as there are names, or leave it out")
        return dict(sorted(names.items()))
    folders = sorted({os.path.dirname(name) for name in labels.names}, key=lambda name: (len(name.split(os.sep)), name))
    found, palette = legend.find([root, *(root / folder for folder in folders[:20])])
    return (found or palette or legend.Legend("", {}, {})).names


# ---- boxes ----


def _lines(root: Path, name: str) -> Iterator[tuple[int, list[bytes]]]:
    path = root / name
    for n, line in enumerate(path.read_bytes().removeprefix(BOM).splitlines() if path.is_file() else (), 1):
        if parts := line.split():
            yield n, parts


def _seen(root: Path, name: str) -> set[int]:
    """The classes in a TXT."""
    numbers = {_class(parts[0]) for _, parts in _lines(root, name)} if name else set()
    return {n for n in numbers if n is not None and n < 10_000}


def _class(text: bytes) -> int | None:
    match = re.fullmatch(rb"(\d{1,9})(\.0*)?", text)
    return int(match[1]) if match else None


def _rows(root: Path, name: str, made: Sheet) -> Iterator[Row]:
    if not (root / name).is_file():
        made.flaw("it is a link that leads nowhere", shown(str(root / name)), "mend the link, or remove it")
    for n, parts in _lines(root, name):
        where, told = f"{shown(str(root / name))}, line {n}", b" ".join(parts).decode("utf-8", "backslashreplace")
        kind = _class(parts[0])
        try:
            numbers = [float(part) for part in parts[1:]]
        except ValueError:
            numbers = []
        if kind is None or (len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2)):
            made.flaw(f"this line is not a class and four numbers: {told!r:.80}", where, FIX)
        elif len(numbers) == 4:
            x, y, w, h = numbers
            yield Row((y - h / 2, x - w / 2, y + h / 2, x + w / 2), kind, told, where)
        else:
            x, y = numbers[::2], numbers[1::2]
            good = all(map(math.isfinite, numbers))
            nan = math.nan
            yield Row((min(y), min(x), max(y), max(x)) if good else (nan, nan, nan, nan), kind, told, where)
