"""The few keys of a data.yaml of YOLO's: path, train, val, test, nc and names, as text, lists or names by number."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from vit.data.folder import shown
from vit.errors import UserError

FILES = "data.yaml", "data.yml", "dataset.yaml", "dataset.yml"
KEY = re.compile(r"""(?P<key>[\w.-]+|"[^"]*"|'[^']*')\s*:(?:\s+|$)(?P<value>.*)""")
MOST = 2**20  # bytes of such a file
PARTS = re.compile(r"""\s*((?:"(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|(?<=\w)'(?=\w)|[^,\[\]{}"'])+?)\s*(?:,|$)""")


class Value(NamedTuple):
    """What a key has, and in which line: a text, a list of texts, or texts by text."""

    content: str | list[str] | dict[str, str]
    line: int


def find(root: Path) -> Path | None:
    """The file that tells of a set: data.yaml, or the only YAML in the root that has names, or what to train on."""
    those = [path for path in sorted(root.glob("*.y*ml")) if path.suffix in (".yaml", ".yml") and path.is_file()]
    those = [path for path in those if re.search(rb"^(names|train)\s*:", path.read_bytes()[:MOST], re.M)]
    return next((path for path in those if path.name in FILES), those[0] if len(those) == 1 else None)


def read(path: Path) -> dict[str, Value]:
    """The keys of a YAML that begin a line. Raises `UserError` where one isn't understood."""
    where = shown(str(path))
    try:
        text = path.read_bytes()[:MOST].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError("this file is not UTF-8", where, "save it as UTF-8") from error
    lines = [(n, _bare(line)) for n, line in enumerate(text.splitlines(), 1)]
    lines = [(n, line) for n, line in lines if line.strip() and line.strip() not in ("---", "...")]
    found: dict[str, Value] = {}
    at = 0
    while at < len(lines):
        n, line = lines[at]
        at += 1
        match = KEY.fullmatch(line)
        below = []
        while at < len(lines) and (lines[at][1][0] in " \t-" or (match and _opens(match["value"], below))):
            below.append(lines[at][1].strip())
            at += 1
        if match is None:
            continue  # whatever it is, none of the keys that are looked for
        try:
            found[_text(match["key"])] = Value(_value(match["value"].strip(), below), n)
        except ValueError as error:
            what = f"the value of {match['key']:.40} isn't understood: {error!s:.60}"
            raise UserError(what, f"{where}, line {n}", "give a text, a list [a, b] or lines - a") from error
    return found


def _bare(line: str) -> str:
    """A line without its comment."""
    match = re.match(r"""(?:[^"'#]|(?<!\s)#|"(?:[^"\\]|\\.)*"|(?<=[\s\[,{:])'(?:[^']|'')*'|')*""", line)
    text = line[: match.end()] if match else line
    return "" if line.lstrip().startswith("#") else text.rstrip()


def _opens(value: str, below: list[str]) -> bool:
    """Whether a bracket is not closed as yet."""
    text = value + "".join(below)
    return value[:1] in ("[", "{") and text.count(value[0]) > text.count({"[": "]", "{": "}"}[value[0]])


def _value(value: str, below: list[str]) -> Any:
    if value[:1] in ("[", "{"):
        text = " ".join([value, *below])
        if text[-1] != {"[": "]", "{": "}"}[value[0]]:
            raise ValueError("its bracket is not closed")
        parts = _parts(text[1:-1])
        return [_text(part) for part in parts] if value[0] == "[" else dict(map(_pair, parts))
    if value or not below:
        return _text(value)
    if all(line.startswith("-") for line in below):
        return [_text(line[1:]) for line in below]
    return dict(map(_pair, below))


def _parts(text: str) -> list[str]:
    """What stands between commas."""
    parts, at = [], 0
    while text[at:].strip():
        match = PARTS.match(text, at)
        if match is None:
            raise ValueError(text[at:].strip())
        parts.append(match[1])
        at = match.end()
    return parts


def _pair(text: str) -> tuple[str, str]:
    match = KEY.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    return _text(match["key"]), _text(match["value"])


def _text(value: str) -> str:
    """A text without its quotes."""
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] == "'":
        return value[1:-1].replace("''", "'")
    if len(value) > 1 and value[0] == value[-1] == '"':
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value
