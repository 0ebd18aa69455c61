"""Sets in COCO's form: instances or panoptic JSON and images, made into ids. `segments` turns an annotation into pixels.

Later annotations cover earlier ones, smaller ones larger ones; crowds are void, below all else. What no annotation covers is
`background`, id 0, of instances, and void of panoptic masks.
"""

import bisect
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vit.data.folder import ENDINGS, SPLIT_NAMES, Problem, shown
from vit.data.maskfiles import NO_ID, BadMask, read_mask
from vit.data.maskforms import Layout, Pair, walked
from vit.data.segments import Segment, as_segment, painted, quoted
from vit.errors import UserError

OTHERS = re.compile(r"caption|keypoint|image_info|unlabeled", re.I)  # COCO's own, of other tasks
KEYS = ("images", "annotations", "categories")
FIX = "give a JSON as COCO's, with images, annotations and categories"
Files = dict[Path, dict[str, Any]]
Parts = dict[str, tuple[Path, dict[str, Any]]]


class Record(NamedTuple):
    """What is known of an image: its size, its segments (instances), or its mask's file and the ids of its segments."""

    size: tuple[int, int]
    segments: list[Segment]
    file: Path | None = None
    ids: dict[int, tuple[int, int]] | None = None  # of a segment → (id of its class, number of the object)


def find(root: Path) -> Layout | None:
    """The pairs that JSON files name; None where there are none of masks. Raises `UserError` if one is malformed."""
    found = loaded(root)
    panoptic = {path: c for path, c in found.items() if any("segments_info" in a for a in c["annotations"])}
    chosen = panoptic or {path: c for path, c in found.items() if any(a.get("segmentation") for a in c["annotations"])}
    chosen = {path: content for path, content in chosen.items() if panoptic or "instances" in path.name.lower()} or chosen
    return Reader(root, by_split(chosen, root), bool(panoptic)).layout() if chosen else None


def loaded(root: Path) -> Files:
    """The content of the JSON files in COCO's form. Raises `UserError` if one is malformed."""
    return {path: content for path in _files(root) if (content := load(path)) is not None}


def by_split(chosen: Files, root: Path) -> Parts:
    """Each file with its content by its split; "" where there is one alone. Raises `UserError` if two are of one split."""
    parts: Parts = {}
    for path, content in chosen.items():
        split = _split(path, root)
        if split in parts or (len(chosen) > 1 and not split):
            what = f"several files have annotations: {', '.join(shown(p.name) for p in chosen):.120}"
            raise UserError(what, shown(str(root)), "leave one for each split, with train, val or test in its name")
        parts[split] = path, content
    return parts


def _files(root: Path) -> list[Path]:
    folders = [root, root / "annotations", *(p for p in sorted(root.iterdir()) if p.name.lower() in SPLIT_NAMES)]
    found = [p for folder in folders if folder.is_dir() for p in sorted(folder.glob("*.json")) if not p.name.startswith(".")]
    return [path for path in found if not OTHERS.search(path.stem) and path.name not in ("features.json", "dataset_info.json")]


def _split(path: Path, root: Path) -> str:
    """By a word in the file's name, or the name of its folder."""
    names = "|".join(sorted(SPLIT_NAMES, key=len, reverse=True))
    match = re.search(rf"(?:^|[-_.])({names})(?:\d{{4}})?(?:$|[-_.])", path.stem.lower())
    if match:
        return SPLIT_NAMES[match[1]]
    return "" if path.parent == root else SPLIT_NAMES.get(path.parent.name.lower(), "")


def load(path: Path) -> dict[str, Any] | None:
    """The content of a JSON in COCO's form; None of any other."""
    ours = re.search(r"instance|panoptic|coco|annotation(?!.*coco)", path.name, re.I)
    try:
        with path.open(encoding="utf-8-sig") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        if not ours and path.parent.name != "annotations":
            return None
        raise UserError(f"this is not JSON: {error!s:.80}", shown(str(path)), "mend the file, or remove it") from error
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        if ours and ours[0].lower() != "annotation":  # others call theirs so, too
            raise UserError("it has no images and annotations", shown(str(path)), FIX)
        return None
    for key in KEYS:
        those = content.get(key)
        if not isinstance(those, list) or not all(isinstance(x, dict) for x in those):
            raise UserError(f"its {key} are not a list of objects", shown(str(path)), FIX)
    return content


def lines_of(text: str) -> dict[str, list[int]]:
    """The lines on which the elements of each list begin that is a value of a JSON's outermost object."""
    decode, between = json.JSONDecoder().raw_decode, re.compile(r"[\s,:]*")
    breaks, found = [match.start() for match in re.finditer("\n", text)], dict[str, list[int]]()

    def next_from(at: int) -> int:
        return between.match(text, at).end()  # type: ignore[union-attr]

    at = next_from(text.index("{") + 1)
    while text[at] != "}":
        key, at = decode(text, at)
        at = next_from(at)
        if text[at] == "[":
            at, found[key] = next_from(at + 1), []
            while text[at] != "]":
                found[key].append(bisect.bisect_left(breaks, at) + 1)
                at = next_from(decode(text, at)[1])
            at = next_from(at + 1)
        else:
            at = next_from(decode(text, at)[1])
    return found


class Reader:
    """Everything that the chosen JSON files say, checked. `record` makes of an image's annotations what is kept of it."""

    def __init__(self, root: Path, parts: Parts, panoptic: bool = False):
        self.root, self.parts, self.panoptic = root, parts, panoptic
        self.problems: list[Problem] = []
        self.records: dict[str, Any] = {}
        self.numbers: dict[str, int | str] = {}  # of the images, by their files
        self.contents, self.lines = dict(parts.values()), dict[Path, dict[int, int]]()
        self.files: dict[str, list[str]] = defaultdict(list)
        for name in walked(root, ENDINGS):
            self.files[os.path.basename(name)].append(name)
        self.categories = self._categories()
        self.names, self.things, self.shift = self._ids()

    def pairs(self) -> list[Pair]:
        """The images that are there; `records` has what is known of each. Raises `UserError` if there are none."""
        pairs: dict[str, Pair] = {}
        for split, (path, content) in self.parts.items():
            for image, pair in self._images(split, path, content):
                if pair.image in pairs:
                    what = f"{shown(pair.image)!r:.80} is named twice, before in {pairs[pair.image].mask}"
                    self.tell(what, f"{shown(str(path))}, image {image}", "leave one of the two")
                    continue
                pairs[pair.image] = pair
        if not pairs:
            problem = next(iter(self.problems), Problem("it names no images", shown(str(self.root)), FIX))
            raise UserError(*problem[:3])
        return list(pairs.values())

    def form(self, kind: str) -> str:
        """What was found, in words."""
        return f"COCO {kind} in {', '.join(shown(os.path.relpath(path, self.root)) for path, _ in self.parts.values())}"

    def layout(self) -> Layout:
        """The pairs, and how their masks are made."""
        return Layout(
            self.form("panoptic" if self.panoptic else "instances"), self.root, self.pairs(), self.problems, names=self.names,
            things=self.things, paint=self.paint, size=lambda pair: self.records[pair.image].size,
        )  # fmt: skip

    def paint(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        """Ids and objects of a pair. Raises `BadImage`."""
        record: Record = self.records[pair.image]
        if record.file is None or record.ids is None:
            return painted(record.segments, record.size)
        pixels = read_mask(record.file).astype(np.int32)
        numbers = pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2] if pixels.ndim == 3 else pixels
        known = {0: (NO_ID, 0), **record.ids}
        order = np.array(sorted(known))
        at = np.searchsorted(order, numbers).clip(max=len(order) - 1)
        if (order[at] != numbers).any():
            number = numbers[order[at] != numbers][0]
            what = f"the mask {shown(record.file.name)} has the segment {number}, and segments_info has not"
            raise BadMask(what, "mend its segments_info, or the mask")
        values = np.array([known[number] for number in order.tolist()], np.uint16)
        return values[at, 0], values[at, 1]

    def tell(self, what: str, where: str, fix: str) -> None:
        """Something is wrong."""
        self.problems.append(Problem(what, where, fix))

    def _categories(self) -> dict[int, tuple[str, bool]]:
        """The names of all ids, and whether they are objects."""
        categories: dict[int, tuple[str, bool]] = {}
        for path, content in self.parts.values():
            for category in content["categories"]:
                number, name = category.get("id"), category.get("name")
                thing = bool(category.get("isthing", True))
                if (
                    not isinstance(number, int)
                    or not 0 <= number < NO_ID - 1
                    or not isinstance(name, str)
                    or not name
                    or shown(name) != name
                ):
                    what = f"a category needs an id from 0 on and a name, this one has {quoted(number)} and {quoted(name)}"
                    raise UserError(what, shown(str(path)), "mend its categories")
                if categories.setdefault(number, (name, thing)) != (name, thing):
                    what = f"category {number} is both {categories[number][0]!r:.40} and {name!r:.40}"
                    raise UserError(what, shown(str(path)), "give each category one id in all files")
        names = [name for name, _ in categories.values()]
        if twice := [name for name in names if names.count(name) > 1]:
            where = shown(str(next(iter(self.parts.values()))[0]))
            raise UserError(f"two categories are called {twice[0]!r:.40}", where, "give every category a name of its own")
        return categories

    def _ids(self) -> tuple[dict[int, str], set[int], int]:
        """The names of a mask's ids, which of them are objects, and what is added to a category's id, if 0 is one."""
        categories = self.categories
        things = {number for number, (_, thing) in categories.items() if thing}
        if self.panoptic:
            return {number: name for number, (name, _) in categories.items()}, things, 0
        shift = 0
        if 0 in categories and categories[0][0].lower() != "background":
            shift = 1  # Roboflow counts from 0
        ids = {number + shift: name for number, (name, _) in categories.items()}
        background = "background" if "background" not in ids.values() else "no annotation"
        return {0: background} | ids, {number + shift for number in things} - {0}, shift

    def _images(self, split: str, path: Path, content: dict[str, Any]) -> Iterator[tuple[Any, Pair]]:
        """The images of a file that are there, each with its record kept."""
        where, annotations = shown(str(path)), defaultdict(list)
        for number, annotation in enumerate(content["annotations"]):
            key = annotation.get("image_id")
            key = key if isinstance(key, int | str) else quoted(key)
            annotations[key].append((annotation.get("id", f"no. {number}"), annotation))
        known: set[Any] = set()
        for image in content["images"]:
            key, name, size = image.get("id"), image.get("file_name"), (image.get("height"), image.get("width"))
            at = f"{where}, image {quoted(key)}"
            if (
                not isinstance(name, str)
                or not isinstance(key, int | str)
                or not all(type(n) is int and 0 < n < 2**31 for n in size)
            ):
                what = "this image has no id, file_name, height and width"
                self.tell(what, at + self.line(path, image), "mend the entry")
                continue
            if key in known:
                self.tell("two images have this id", at + self.line(path, image), "give every image an id of its own")
                continue
            known.add(key)
            file = self._file(name, split, False, path)
            if not file:
                what = f"{shown(name)!r:.80} isn't there"
                self.tell(what, at + self.line(path, image), "add the file, or take the image out")
                continue
            record = self.record(annotations[key], size, at, path, split)
            if record is not None:
                self.records.setdefault(file, record)
                self.numbers.setdefault(file, key)
                yield key, Pair(file, f"{os.path.relpath(path, self.root)}, image {key}", split)
        for key, those in annotations.items():
            for number, annotation in those if key not in known else ():
                what = f"annotation {quoted(number)} is of image {quoted(key)}, which is not among the images"
                self.tell(what, where + self.line(path, annotation), "mend its image_id, or remove it")

    def record(self, those: list[Any], size: Any, at: str, path: Path, split: str) -> Any:
        """What is known of an image of this size by its annotations, each with its id; None if it can't be used."""
        if not self.panoptic:
            segments = []
            for i, (number, annotation) in enumerate(those):
                category = annotation.get("category_id")
                segment = "there is no such category" if not self.known(category) else as_segment(annotation, size)
                if isinstance(segment, str):
                    what = segment if self.known(category) else f"its category {quoted(category)} is not among the categories"
                    self.tell(f"annotation {quoted(number)}: {what}", at, "mend the annotation, or remove it")
                else:
                    what = (NO_ID, 0) if annotation.get("iscrowd") else (category + self.shift, i + 1)
                    segments.append(segment._replace(number=what[0], object=what[1]))
            return Record(size, segments)
        if len(those) != 1:
            self.tell(f"it has {len(those)} panoptic annotations", at, "give every image one")
            return None
        _, annotation = those[0]
        name, infos = annotation.get("file_name"), annotation.get("segments_info")
        file = self._file(str(name), split, True, path)
        if not file:
            self.tell(f"its panoptic mask {quoted(name)} isn't there", at, "put the PNGs into a folder beside the JSON")
            return None
        ids = {}
        for i, info in enumerate(infos if isinstance(infos, list) else []):
            number, category = (info.get("id"), info.get("category_id")) if isinstance(info, dict) else (None, None)
            if not isinstance(number, int) or not self.known(category):
                what = f"its segment {quoted(number)} is of category {quoted(category)}, which is not among the categories"
                self.tell(what, at, "mend its segments_info")
                return None
            crowd = bool(info.get("iscrowd"))
            ids[number] = NO_ID if crowd else category, i + 1 if category in self.things and not crowd else 0
        return Record(size, [], self.root / file, ids)

    def line(self, path: Path, entry: Any) -> str:
        """`, line 7`: where an image or an annotation begins in its file, which is read again for that, once."""
        if path not in self.lines:
            found, content = lines_of(path.read_text(encoding="utf-8-sig")), self.contents[path]
            self.lines[path] = {id(x): n for key in KEYS for x, n in zip(content[key], found[key], strict=True)}
        return f", line {self.lines[path][id(entry)]}"

    def known(self, category: Any) -> bool:
        """Whether it is the id of a category."""
        return type(category) is int and category in self.categories

    def _file(self, name: str, split: str, panoptic: bool, path: Path) -> str:
        """The file of this name, or "": of several the one in the folder of the split, or beside the JSON."""
        parts = [part for part in name.replace("\\", "/").split("/") if part]
        if ".." in parts or not parts:
            return ""
        found = self.files.get(parts[-1], [])
        for end in range(len(parts)):  # as much of the path as is here
            if those := [f for f in found if f.split(os.sep)[-(len(parts) - end) :] == parts[end:]]:
                found = those
                break

        here = "" if path.parent == self.root else os.path.relpath(path.parent, self.root)

        def fits(file: str) -> tuple[bool, bool, bool]:
            folders = os.path.dirname(file).lower()
            masks = "panoptic" in folders or path.stem.lower() in folders.split(os.sep) or "mask" in folders
            return masks == panoptic, bool(split) and _has(folders, split), os.path.dirname(file) == here

        return max(found, key=fits, default="")


def _has(folders: str, split: str) -> bool:
    return any(re.search(rf"(^|[^a-z]){name}(\d|[^a-z]|$)", folders) for name, part in SPLIT_NAMES.items() if part == split)
