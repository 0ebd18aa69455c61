"""Boxes in COCO's form: JSON files with `bbox` [x, y, width, height] in pixels; crowds by `iscrowd`."""

import json
import math
from pathlib import Path
from typing import Any

from vit.data.boxforms import Row, Sheet, wrong
from vit.data.coco import FIX, Files, Parts, Reader, by_split, load, loaded
from vit.data.folder import shown
from vit.data.segments import quoted
from vit.errors import UserError


def find(root: Path) -> Sheet | None:
    """The images that JSON files name; None where there are none with boxes. Raises `UserError` if one is malformed."""
    chosen = chosen_of(loaded(root))
    return _Reader(root, by_split(chosen, root)).sheet() if chosen else None


def chosen_of(found: Files) -> Files:
    """Those of the files that have boxes, or no annotations at all beside such."""
    having = {path: content for path, content in found.items() if not any("segments_info" in a for a in content["annotations"])}
    if not any("bbox" in a for content in having.values() for a in content["annotations"]):
        return {}
    return {path: content for path, content in having.items() if "instances" in path.name.lower()} or having


def read(path: Path, folder: Path | None) -> Sheet:
    """The images of one file, which lie in `folder` or beside it. Raises `UserError` if it is none of COCO's."""
    if not path.is_file():
        raise UserError("there is no such file of annotations", shown(str(path)), "give --data.annotations FILE.json")
    content = load(path)
    if content is None:
        raise UserError("this is not a JSON of images and annotations", shown(str(path)), FIX)
    above = path.parent.parent if path.parent.name == "annotations" else path.parent
    return _Reader(folder or above, {"": (path, content)}).sheet()


def _is_number(x: Any) -> bool:
    return type(x) is float or (type(x) is int and abs(x) < 2**53)


class _Reader(Reader):
    def __init__(self, root: Path, parts: Parts):
        super().__init__(root, parts)
        self.made = Sheet("", root)
        self.problems = self.made.flaws  # all that is told here may be left out
        self.annotations: dict[Path, set[Any]] = {path: set() for path, _ in parts.values()}

    def sheet(self) -> Sheet:
        made, left_out = self.made, self._superior()
        made.form = self.form("boxes")
        made.names = {number: name for number, (name, _) in sorted(self.categories.items()) if number not in left_out}
        for pair in self.pairs():
            rows, size = self.records[pair.image]
            made.add(pair.image, pair.split, rows, size, number=self.numbers[pair.image])
        return made

    def _superior(self) -> set[int]:
        """Categories that are only the name of others together, as Roboflow writes one."""
        contents = [content for _, content in self.parts.values()]
        used = {quoted(a.get("category_id")) for content in contents for a in content["annotations"]}
        pairs = [(c.get("name"), c.get("supercategory")) for content in contents for c in content["categories"]]
        above = [group for name, group in pairs if name != group]
        return {n for n, (name, _) in self.categories.items() if name in above and quoted(n) not in used}

    def record(self, those: list[Any], size: Any, at: str, path: Path, split: str) -> Any:
        rows, (height, width) = [], size
        for number, annotation in those:
            place = f"{shown(str(path))}, annotation {quoted(number)}"
            box, category = annotation.get("bbox"), annotation.get("category_id")
            key = number if isinstance(number, int | str) else quoted(number)
            if key in self.annotations[path]:
                where = place + self.line(path, annotation)
                self.tell("two annotations have this id", where, "give every annotation an id of its own")
            elif not self.known(category):
                what = f"its category {quoted(category)} is not among the categories"
                self.tell(what, place + self.line(path, annotation), "mend its category_id, or remove it")
            elif not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
                where = place + self.line(path, annotation)
                self.tell(f"its bbox is not four numbers: {quoted(box)}", where, "give x, y, width and height")
            else:
                x, y, w, h = map(float, box)
                area = annotation.get("area")
                area = float(area) if _is_number(area) and 0 < area < math.inf else math.nan
                corners = y / height, x / width, (y + h) / height, (x + w) / width
                where = place + self.line(path, annotation) if wrong(corners) else place
                rows.append(Row(corners, category, f"bbox {json.dumps(box)}", where, bool(annotation.get("iscrowd")), area))
            self.annotations[path].add(key)
        return rows, size
