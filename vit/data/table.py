"""Tables of images: CSV or JSONL with a path, a label and perhaps a split on each line."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vit.data.folder import SPLIT_NAMES, Entry, Listing, Problem, made, shown
from vit.errors import UserError

COLUMNS = {
    "path": ("path", "file", "file_name", "filename", "image", "image_path", "filepath"),
    "label": ("label", "class", "class_name"),
    "split": ("split",),
}
ENDINGS = (".csv", ".tsv", ".jsonl")
FIX = "give it the columns path and label (and split, if you like)"


def find(root: Path) -> list[Path]:
    """The tables of a folder that name images: train.csv, val.csv, test.csv, or a single one of any name."""
    files = sorted(p for p in root.iterdir() if p.suffix.lower() in ENDINGS and p.is_file() and not p.name.startswith("."))
    tables = [path for path in files if {"path", "label"} <= _columns(path).keys()]
    if all(path.stem.lower() in SPLIT_NAMES for path in tables):
        return tables
    if len(tables) > 1:
        what = f"several tables name images: {', '.join(shown(p.name) for p in tables):.80}"
        raise UserError(what, shown(str(root)), "give the path of one as --data.dir, or call them train.csv, val.csv, test.csv")
    return tables


def read(tables: list[Path], root: Path) -> Listing:
    """The listing of one table, or of one a split; paths are relative to its folder and don't lead out of it."""
    problems: list[Problem] = []
    entries: dict[str, tuple[Entry, str]] = {}
    for table in tables:
        part = SPLIT_NAMES.get(table.stem.lower(), "") if len(tables) > 1 else ""
        for line, row in _rows(table, problems):
            where = f"{shown(str(table))}, line {line}"
            entry = _entry(row, root, part, where, problems)
            if entry is None:
                continue
            if entry.name in entries:
                what = f"{shown(entry.name)!r:.60} is named twice, before in {entries[entry.name][1]}"
                problems.append(Problem(what, where, "leave one of the two lines"))
                continue
            entries[entry.name] = entry, f"line {line}" if len(tables) == 1 else f"{shown(table.name)}, line {line}"
    found = [entry for entry, _ in entries.values()]
    if len({bool(entry.split) for entry in found}) == 2:
        entry, line = next(pair for pair in entries.values() if not pair[0].split)
        problems.append(
            Problem("some images have a split and some don't", f"{shown(str(root))}, {line}", "give all of them one")
        )
        found = [e if e.split else e._replace(split="train") for e in found]
    if not found:
        what, where, fix, _ = problems[0] if problems else Problem("it names no images", shown(str(tables[0])), FIX)
        raise UserError(what, where, fix)
    labels = {entry.label for entry in found}
    numbers = all(label.isdecimal() and len(label) < 20 for label in labels)
    names = sorted(labels, key=int) if numbers else sorted(labels)
    form = f"table {', '.join(shown(table.name) for table in tables)}"
    return made(form, root, found, names, lambda name: root / name, problems)


def _columns(table: Path) -> dict[str, str]:
    """Which of a table's columns, or keys of its first line, is the path, the label, the split."""
    try:
        with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            first = file.readline(2**20)
            if table.suffix.lower() == ".jsonl":
                while first and not first.strip():
                    first = file.readline(2**20)
                record = json.loads(first)
                names = list(record) if isinstance(record, dict) else []
            else:
                names = next(csv.reader([first], delimiter=_delimiter(first)), [])
    except (ValueError, csv.Error, RecursionError):
        return {}
    known = {name.strip().lower(): name for name in reversed(names)}
    return {column: known[alias] for column, aliases in COLUMNS.items() for alias in reversed(aliases) if alias in known}


def _delimiter(header: str) -> str:
    return next((mark for mark in "\t;" if mark in header), ",")


def _rows(table: Path, problems: list[Problem]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and what stands under path, label and split, line by line."""
    columns, where = _columns(table), shown(str(table))
    if missing := {"path", "label"} - columns.keys():
        raise UserError(f"it has no column {' and no column '.join(sorted(missing))}", where, FIX)
    with table.open("rb") as file:
        lines = _texts(file, where, problems)
        if table.suffix.lower() == ".jsonl":
            for number, text in enumerate(lines, 1):
                if not text.strip():
                    continue
                try:
                    record = json.loads(text)
                except (ValueError, RecursionError) as error:
                    problems.append(Problem(f"this is not JSON: {error!s:.60}", f"{where}, line {number}", "mend the line"))
                    continue
                if isinstance(record, dict):
                    yield number, {column: record.get(name) for column, name in columns.items()}
                else:
                    problems.append(
                        Problem("this is not a JSON object", f"{where}, line {number}", 'write {"path": …, "label": …}')
                    )
            return
        header = next(lines)
        names = next(csv.reader([header], delimiter=_delimiter(header)))
        reader = csv.reader(lines, delimiter=_delimiter(header), strict=True)
        try:
            for row in reader:
                if len(row) == len(names):
                    record = dict(zip(names, row, strict=True))
                    yield reader.line_num + 1, {column: record[name] for column, name in columns.items()}
                elif row:
                    what = f"this line has {len(row)} values, the header {len(names)}"
                    problems.append(Problem(what, f"{where}, line {reader.line_num + 1}", "put texts with commas into quotes"))
        except csv.Error as error:
            problems.append(Problem(f"this is not CSV: {error}", f"{where}, line {reader.line_num + 1}", "mend the line"))


def _texts(file: Any, where: str, problems: list[Problem]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            problems.append(Problem("this line is not UTF-8", f"{where}, line {number}", "save the table as UTF-8"))
            yield "\n"


def _entry(row: dict[str, Any], root: Path, part: str, where: str, problems: list[Problem]) -> Entry | None:
    path, label, split = row["path"], row["label"], row.get("split")
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)
    faults = []
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        faults.append(("it has no path", "give the path of an image, relative to the table"))
    elif any("\ud800" <= c <= "\udfff" for c in f"{path}{label}"):
        faults.append(("its path or label isn't UTF-8", "mend the line"))
    if not isinstance(label, str) or not label.strip():
        faults.append((f"it has no label, but {label!r:.40}", "give the name of a class, or its number"))
    elif label.strip().startswith("-") and label.strip()[1:].isdecimal():
        faults.append((f"label {label.strip():.40} is below 0", "take images without a class out"))
    split = part if split in (None, "") else SPLIT_NAMES.get(str(split).strip().lower(), "?")
    if split == "?":
        faults.append((f"there is no split {row['split']!r:.40}", "give train, val or test"))
    elif part and split != part:
        faults.append((f"it is of split {row['split']!r:.40}, in the table of {part}", "leave the column out"))
    if not faults:
        inside = os.path.abspath(root)
        name = os.path.normpath(os.path.join(inside, path.strip()))
        if name.startswith(os.path.join(inside, "")):
            name = os.path.relpath(name, inside)
            bad = (
                ""
                if os.path.isfile(root / name)
                else "it isn't there"
                if not os.path.lexists(root / name)
                else "it is not a file"
            )
            return Entry(name, str(label).strip(), split, bad)
        faults.append((f"{path!r:.60} leads out of the table's folder", "put the images below the table"))
    what, fix = faults[0]
    problems.append(Problem(what, where, fix))
    return None
