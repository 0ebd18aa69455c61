"""Boxes in Pascal VOC's form: an XML for each image, and lists of them in ImageSets/Main or not.

VOC counts pixels from 1, and xmax is the last pixel of the box: it reaches from xmin - 1 to xmax. Other tools write the edges
as they are, from 0: where any box of a set begins at 0, all of them are read so. `difficult` is a crowd.
"""

import math
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers import expat

from vit.data.boxforms import Row, Sheet
from vit.data.folder import ENDINGS, Problem, shown
from vit.data.maskforms import File, sorted_out, walked
from vit.data.masklists import base_of, lines_of, lists_in

LISTS = "ImageSets/Main"
OTHERS = "mask", "unused"  # pixels that are no images
SIDES = "xmin", "ymin", "xmax", "ymax"
FIX = "give xmin, ymin, xmax and ymax in pixels, or remove the object"


class BadXml(ValueError):
    """An XML that is none of VOC's; its text says why, and in which line."""


@dataclass
class Annotation:
    """What an XML says: its size, if it does, the image's name, and for each object its fields and the line of its box."""

    size: tuple[int, int] | None = None
    filename: str = ""
    objects: list[dict[str, str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)


def find(root: Path, names: tuple[str, ...]) -> Sheet | None:
    """The images that XML files are of; None where there are none. The classes are `names`, or those that objects have."""
    base = base_of(root, LISTS)
    files = [sorted_out(name) for name in walked(base, {*ENDINGS, ".xml"})]
    annotated = [file for file in files if _is_xml(file) and _is_annotation(base / file.name)]
    if not annotated:
        return None
    return _Reader(base, annotated, [file for file in files if not _is_xml(file) and file.role not in OTHERS], names).sheet()


def has_xml(root: Path) -> bool:
    """Whether an XML of VOC's lies in a folder."""
    return any(_begins_as_one(root / name) for name in walked(root, {".xml"}))


def _is_xml(file: File) -> bool:
    return file.name.lower().endswith(".xml")


def _is_annotation(path: Path) -> bool:
    """Whether it begins as an annotation, or lies where such do, where it may be damaged."""
    return path.parent.name.lower() == "annotations" or _begins_as_one(path)


def _begins_as_one(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return b"<annotation" in file.read(2**11)


def parse(content: bytes) -> Annotation:
    """An XML file. Raises `BadXml`."""
    found, head, path, text = Annotation(), {}, [], []
    parser = expat.ParserCreate()

    def start(tag: str, _: Any) -> None:
        path.append(tag)
        text.clear()
        if path[1:] == ["object"]:
            found.objects.append({})
            found.lines.append(parser.CurrentLineNumber)
        elif path[1:] == ["object", "bndbox"]:
            found.lines[-1] = parser.CurrentLineNumber

    def end(tag: str) -> None:
        key, value = "/".join(path[1:]), "".join(text).strip()
        if key.startswith("object/"):
            found.objects[-1].setdefault(key.removeprefix("object/").removeprefix("bndbox/"), value)
        elif len(path) < 4:
            head.setdefault(key, value)
        path.pop()
        text.clear()

    def entity(*_: Any) -> None:
        raise BadXml(f"it defines entities, in line {parser.CurrentLineNumber}")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text.append
    parser.EntityDeclHandler = entity
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise BadXml(f"it is not XML: {expat.ErrorString(error.code)}, in line {error.lineno}") from error
    except BadXml:
        raise
    except (ValueError, LookupError) as error:
        raise BadXml(f"it can't be read in the encoding that it names: {error}") from error
    width, height = (_whole(head.get(f"size/{name}", "")) for name in ("width", "height"))
    found.size, found.filename = (height, width) if height and width else None, head.get("filename", "")
    return found


def _whole(text: str) -> int:
    """A number of pixels; 0 where there is none."""
    return int(text) if text.isdecimal() and len(text) < 10 else 0


class _Entry(NamedTuple):
    """An XML with its image and split."""

    xml: str
    image: str
    split: str
    content: Annotation


class _Reader:
    def __init__(self, root: Path, xmls: list[File], images: list[File], names: tuple[str, ...]):
        self.root, self.xmls, self.images, self.given = root, xmls, images, names
        self.made = Sheet("VOC's XML", root)
        self.by_stem: dict[str, list[File]] = defaultdict(list)
        for image in images:
            self.by_stem[image.stem].append(image)

    def sheet(self) -> Sheet:
        made = self.made
        lists = lists_in(self.root / LISTS)
        if "train" not in lists and (path := self.root / LISTS / "trainval.txt").is_file():
            lists["train"] = path
        entries = self._entries(self._listed(lists) if lists else [(file, file.split) for file in self.xmls])
        if lists:
            made.form += f", lists {', '.join(path.name for path in lists.values())}"
        else:
            self._rest({entry.image for entry in entries})
        objects = [o for entry in entries for o in entry.content.objects]
        from_0 = any(0 <= number(o, side) < 1 for o in objects if _has_area(o) for side in SIDES[:2])
        made.form += f", boxes from {0 if from_0 else 1}"
        names = self.given or tuple(sorted({o["name"] for o in objects if o.get("name")}))
        made.names = dict(enumerate(names))
        numbers = {name: i for i, name in made.names.items()}
        for entry in entries:
            size = entry.content.size or self._size(entry)
            if size:
                made.add(entry.image, entry.split, self._rows(entry, size, numbers, from_0), entry.content.size, FIX)
        return made

    def _listed(self, lists: dict[str, Path]) -> list[tuple[File, str]]:
        """The XML files that lists name, with their splits."""
        by_stem: dict[str, list[File]] = defaultdict(list)
        for file in self.xmls:
            by_stem[file.stem].append(file)
        found, missing = {}, defaultdict(list)
        for split, path in lists.items():
            lines: list[Problem] = []
            for n, line in lines_of(path, lines):
                where, stem = f"{shown(str(path))}, line {n}", os.path.basename(line.split()[0])
                those = by_stem.get(line) or by_stem.get(stem) or by_stem.get(os.path.splitext(stem)[0], [])
                if not those:
                    missing[split].append((f"{stem!r:.60} has no XML", where))
                elif those[0].name in found:
                    self.made.flaw(f"{stem!r:.60} stands in a list before", where, "leave one of the two lines")
                else:
                    found[those[0].name] = those[0], split
            self.made.flaws += lines
        for split, flaws in missing.items():
            if split == "test" and not any(part == "test" for _, part in found.values()):
                what = f"the {len(flaws):,} images of test have no XML and are not used"
                self.made.note(what, shown(str(lists[split])), "add their annotations")
                continue
            for what, where in flaws:
                self.made.flaw(what, where, "add the XML, or remove the line")
        if rest := len(self.xmls) - len(found):
            what = f"{rest:,} XML files are in no list and are not used"
            self.made.note(what, shown(str(self.root / LISTS)), "add their names to a list")
        return list(found.values())

    def _entries(self, files: Iterable[tuple[File, str]]) -> list[_Entry]:
        """The XML files that can be read, each with its image."""
        entries, used = [], {}
        for file, split in files:
            where = shown(str(self.root / file.name))
            try:
                content = parse((self.root / file.name).read_bytes())
            except BadXml as error:
                self.made.flaw(str(error), where, "mend the file, or remove it")
                continue
            except FileNotFoundError:
                self.made.flaw("it is a link that leads nowhere", where, "mend the link, or remove it")
                continue
            image = self._image(file, content)
            if not image:
                self.made.flaw("this XML has no image", where, "add its image, or remove it")
            elif image.name in used:
                what = f"its image {shown(image.name)!r:.60} is that of {shown(used[image.name])!r:.60}, too"
                self.made.flaw(what, where, "leave one of the two")
            else:
                used[image.name] = file.name
                entries.append(_Entry(file.name, image.name, split, content))
        return entries

    def _image(self, xml: File, content: Annotation) -> File | None:
        """The image of the XML's own stem, or else of the name that it gives; of several the nearest."""
        name = os.path.basename(content.filename.replace("\\", "/"))
        those = self.by_stem.get(xml.stem) or self.by_stem.get(os.path.splitext(name)[0], [])

        def fits(file: File) -> tuple[bool, bool, bool, bool]:
            beside = os.path.dirname(file.name) == os.path.dirname(xml.name)
            named = os.path.basename(file.name) == name
            return beside, file.split == xml.split, file.place == xml.place, named

        return max(those, key=fits, default=None)

    def _rest(self, used: set[str]) -> None:
        """A word of the images without XML."""
        if rest := [file for file in self.images if file.name not in used]:
            what = f"{len(rest):,} images have no XML and are not used, as {shown(rest[0].name)!r:.60}"
            self.made.note(what, shown(str(self.root)), "add an XML without objects for those that show none")

    def _size(self, entry: _Entry) -> tuple[int, int] | None:
        """Height and width of an image whose XML doesn't say them."""
        from vit.data.decode import BadImage, header

        try:
            found = header(self.root / entry.image)
        except BadImage as error:
            what = f"it says no size, and its image can't be used: {error}"
            self.made.flaw(what, shown(str(self.root / entry.xml)), "mend or remove both")
            return None
        return (found.width, found.height) if found.orientation >= 5 else (found.height, found.width)

    def _rows(self, entry: _Entry, size: tuple[int, int], numbers: dict[str, int], from_0: bool) -> list[Row]:
        rows, (height, width) = [], size
        for fields, line in zip(entry.content.objects, entry.content.lines, strict=True):
            where, name = f"{shown(str(self.root / entry.xml))}, line {line}", fields.get("name", "")
            sides = [number(fields, side) for side in SIDES]
            told = " ".join(f"{side} {fields[side] or 'empty'}" if side in fields else f"no {side}" for side in SIDES)
            if name not in numbers:
                self.made.flaw(
                    f"its class {shown(name)!r:.60} is not among the classes", where, "mend the name, or remove the object"
                )
                continue
            x0, y0, x1, y1 = sides
            if not from_0:  # but a box from a pixel to itself is a slip of the hand, of no area
                x0, y0 = x0 - (x1 > x0), y0 - (y1 > y0)
            corners = y0 / height, x0 / width, y1 / height, x1 / width
            rows.append(Row(corners, numbers[name], told, where, fields.get("difficult", "").lower() in ("1", "true")))
        return rows


def _has_area(fields: dict[str, str]) -> bool:
    """Whether the box of an object ends behind its start; others say nothing of where a tool begins to count."""
    x0, y0, x1, y1 = (number(fields, side) for side in SIDES)
    return x0 < x1 and y0 < y1


def number(fields: dict[str, str], side: str) -> float:
    """A side of an object's box; NaN where it is no number."""
    try:
        return float(fields.get(side, ""))
    except ValueError:
        return math.nan
