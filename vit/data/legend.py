"""What ids and colours mean: `classes.txt`, palette files, in the ways that people write them.

A line is a name; `R G B name`; or a name, R, G, B, with or without a header; values stand between blanks, commas, semicolons
or colons. The first line is id 0 and so on, unless a header or every line gives ids.
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from vit.data.folder import shown
from vit.errors import UserError

NAMES = ("classes.txt", "names.txt", "class_names.txt", "labels.txt", "codes.txt")
PALETTES = (
    "palette.txt", "palette.csv", "colors.txt", "colours.txt", "label_colors.txt", "class_dict.csv", "class_dict_seg.csv",
    "classes.csv", "labelmap.txt", "classes.txt", "label_colors.csv", "colors.csv",
)  # fmt: skip
MOST = 2**20  # bytes of such a file
HEADER = {"name": "name", "class": "name", "class_name": "name", "label": "name", "r": "r", "g": "g", "b": "b", "id": "id"}
HEADER |= {"red": "r", "green": "g", "blue": "b", "names": "name", "classes": "name", "index": "id", "category": "name"}
FIX = "give each class a line R G B name"


@dataclass(frozen=True)
class Legend:
    """The names of ids, and the ids of colours (24 bits: red, green, blue) where the file tells them."""

    file: str
    names: dict[int, str]
    colours: dict[int, int]


def find(folders: list[Path]) -> tuple[Legend | None, Legend | None]:
    """What names the ids and what has the palette, looked for in one folder after the other. Raises `UserError` at a fault."""
    names = palette = None
    for folder in folders:
        for name in dict.fromkeys((*NAMES, *PALETTES)):
            if (folder / name).is_file() and (found := read(folder / name)) is not None:
                if found.colours:
                    palette = palette or found
                elif name in (*NAMES, "classes.csv"):
                    names = names or found
                else:
                    raise UserError("the palette has no colours", found.file, FIX)
    return names, palette


def read(path: Path) -> Legend | None:
    """A file of names or colours; None if a table is of something else. Raises `UserError` at its first fault."""
    where = shown(str(path))
    try:
        with path.open("rb") as file:
            text = file.read(MOST).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError("the names of the classes are not UTF-8", where, "save the file as UTF-8") from error
    lines = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1)]
    while lines and not lines[-1][1]:
        lines.pop()
    lines = [(n, line) for n, line in lines if not line.startswith("#")]
    if not any(line for _, line in lines):
        raise UserError("the file of class names is empty", where, "put the name of a class on each line, or remove it")
    if path.suffix == ".csv" and (table := _table(lines, where)) is not None:
        return table if isinstance(table, Legend) else None
    rows = [(n, *_line(line)) for n, line in lines]
    coloured = any(colour is not None for _, _, colour in rows)
    if coloured or path.suffix == ".csv":  # an empty line is no class that was forgotten
        rows = [row for row in rows if row[1:] != ("", None)]
    for n, name, colour in rows:
        if not name and colour is None:
            what = "this line is empty, and the ids behind it would be wrong"
            raise UserError(what, f"{where}, line {n}", "give the class a name, or remove the line")
        if coloured and colour is None:
            raise UserError(f"this line of the palette has no colour: {name!r:.60}", f"{where}, line {n}", FIX)
    numbers = [_number(name) for _, name, _ in rows]
    told = all(number is not None for number in numbers) and len(rows) > 1
    entries = []
    for i, (n, name, colour) in enumerate(rows):
        number = numbers[i]
        entries.append((n, *(number if told and number is not None else (i, name or str(i))), colour))
    return _legend(where, entries)


def _number(name: str) -> tuple[int, str] | None:
    """`3: sky` → (3, "sky")."""
    match = re.fullmatch(r"(\d{1,5})\s*[\s,;:=]\s*(\S.*)", name)
    return (int(match[1]), match[2].strip()) if match else None


def _line(line: str) -> tuple[str, tuple[int, ...] | None]:
    """The name and colour of a line, either of which it may lack."""
    parts = [part for part in re.split(r"[\s,;:]+", line) if part]
    at = [i for i, part in enumerate(parts) if re.fullmatch(r"-?\d+", part)]
    if len(parts) >= 3 and (at[:3] == [0, 1, 2] or at[-3:] == [len(parts) - 3, len(parts) - 2, len(parts) - 1]):
        if at[:3] == [0, 1, 2] and (len(parts) > 3 or len(at) == 3) and len(at) < 6:
            first, rest = True, re.split(r"[\s,;:]+", line, maxsplit=3)[3:]
        else:
            first, rest = False, re.split(r"[\s,;:]+(?=-?\d+[\s,;:]+-?\d+[\s,;:]+-?\d+[\s,;:]*$)", line, maxsplit=1)[:1]
        colour = tuple(int(part) for part in (parts[:3] if first else parts[-3:]))
        return (rest[0].strip(" ,;:\"'") if rest else ""), colour
    return line.strip("\"'"), None


def _table(lines: list[tuple[int, str]], where: str) -> Legend | bool | None:
    """A table with a header that names the columns; None if it has no header, False if it's a table of other things."""
    n, first = next((n, line) for n, line in lines if line)
    mark = next((mark for mark in "\t;" if mark in first), ",")
    cells = [cell.strip().lower() for cell in next(csv.reader([first], delimiter=mark))]
    columns = {HEADER[cell]: i for i, cell in reversed(list(enumerate(cells))) if cell in HEADER}
    if "name" not in columns:
        return None if sum(cell.isdecimal() for cell in cells) >= 3 else False
    if any(cell.isdecimal() for cell in cells):
        return None  # a class that is called "label"
    if len(cells) > 1 and not columns.keys() & {"id", "r", "g", "b"}:
        return False
    entries = []
    for number, line in lines:
        if number <= n or not line:
            continue
        row = [cell.strip() for cell in next(csv.reader([line], delimiter=mark))]
        colour = None
        try:
            name, known = row[columns["name"]], int(row[columns["id"]]) if "id" in columns else len(entries)
            if {"r", "g", "b"} <= columns.keys():
                colour = tuple(int(row[columns[c]]) for c in "rgb")
        except (ValueError, IndexError) as error:
            what = f"this line of the palette doesn't have what the header says: {line!r:.60}"
            raise UserError(what, f"{where}, line {number}", f"give it {', '.join(cells)}") from error
        entries.append((number, known, name, colour))
    return _legend(where, entries) if entries else None


def _legend(where: str, entries: list[tuple[int, int, str, tuple[int, ...] | None]]) -> Legend:
    """Of (line, id, name, colour). Raises `UserError` for what stands twice, and for what is no colour."""
    names: dict[int, str] = {}
    colours: dict[int, int] = {}
    first: dict[object, int] = {}
    for line, number, name, colour in entries:
        at = f"{where}, line {line}"
        for kind, value, key in (("name", name, name), ("colour", colour, ("colour", colour)), ("id", number, ("id", number))):
            if value is not None and first.setdefault(key, line) != line:
                said = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
                what = f"the {kind} {said!r:.60} stands twice, before in line {first[key]}"
                raise UserError(what, at, f"give every class a {kind} of its own" if kind != "id" else "give every id once")
        if not 0 <= number < 65535:
            raise UserError(f"{number} can't be the id of a class", at, "give ids from 0 on")
        names[number] = name
        if colour is not None:
            if not all(0 <= value <= 255 for value in colour):
                said = " ".join(map(str, colour))
                raise UserError(f"{said} is no colour", at, "give red, green and blue as numbers from 0 to 255")
            colours[colour[0] << 16 | colour[1] << 8 | colour[2]] = number
    return Legend(where, names, colours)
