"""The few keys of a data.yaml of YOLO's: path, train, val, test, nc and names, as text, lists or names by number."""

import re
from pathlib import Path
from typing import NamedTuple

import yaml

from vit.data.folder import SPLIT_NAMES, shown
from vit.errors import UserError

FILES = "data.yaml", "data.yml", "dataset.yaml", "dataset.yml"
KEYS = {"path", "nc", "names", *SPLIT_NAMES}
MOST = 2**20  # bytes of such a file


class Value(NamedTuple):
    """What a key has, and in which line: a text, a list of texts, or texts by text."""

    content: str | list[str] | dict[str, str]
    line: int


def find(root: Path) -> Path | None:
    """The file that tells of a set: data.yaml with names or what to train on, or the only YAML in the root that has names."""
    those = [path for path in sorted(root.glob("*.y*ml")) if path.suffix in (".yaml", ".yml") and path.is_file()]
    heads = {path: path.read_bytes()[:MOST] for path in those}
    those = [path for path in those if re.search(rb"^names\s*:", heads[path], re.M)]
    told = [path for path in heads if path.name in FILES and re.search(rb"^(names|train)\s*:", heads[path], re.M)]
    return told[0] if told else those[0] if len(those) == 1 else None


def read(path: Path) -> dict[str, Value]:
    """The keys of a YAML, those we look for and others that are as simple. Raises `UserError` where it isn't understood."""
    where = shown(str(path))
    try:
        # Composed and not loaded: a node knows its line, is text still, and builds nothing.
        root = yaml.compose(path.read_bytes()[:MOST].decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise UserError("this file is not UTF-8", where, "save it as UTF-8") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "it can't be read"
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"this is not YAML: {problem:.80}", where + line, "mend the file, or remove it") from error
    found: dict[str, Value] = {}
    for key, node in root.value if isinstance(root, yaml.MappingNode) else ():
        content, line = _content(node), key.start_mark.line + 1
        if content is not None:
            found[str(key.value)] = Value(content, line)
        elif key.value in KEYS:
            what = f"the value of {key.value} is nested, or a list of something else than texts"
            raise UserError(what, f"{where}, line {line}", "give a text, a list [a, b] or lines - a")
    return found


def _content(node: yaml.Node) -> str | list[str] | dict[str, str] | None:
    """A text, or texts in a list or by text; None of anything else."""
    if isinstance(node, yaml.ScalarNode):
        return node.value
    parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
    if not all(isinstance(part, yaml.ScalarNode) for part in parts):
        return None
    texts = [part.value for part in parts]
    return texts if isinstance(node, yaml.SequenceNode) else dict(zip(texts[::2], texts[1::2], strict=True))
