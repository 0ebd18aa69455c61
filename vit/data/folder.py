"""What lies in a folder of images: every image with its label and split, in whatever form it comes, and what is wrong there.

`listing` looks and reads no pixels. The forms, and how images that nobody split are split: docs/decisions/0008.
"""

import hashlib
import os
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vit.config import FolderData
from vit.data.decode import begins_an_image
from vit.errors import UserError

DEEPEST = 100  # folders in folders that are looked into; Python would give up at a thousand
SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Files with these endings count as images, whether they can be decoded or not; any other must begin as an image does.
ENDINGS = {
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".heic",
    ".heif",
    ".avif",
    ".jxl",
}
BLOCK = 2**14
NOT_UTF8 = "its name is not UTF-8"


class Problem(NamedTuple):
    """Something wrong with a data set, in the words of an error; not `fatal`: it can be trained on nevertheless."""

    what: str
    where: str
    fix: str
    fatal: bool = True


class Entry(NamedTuple):
    """An image: its name below the root, its class, its split or "" where nobody split; and why it's no good, if that shows."""

    name: str
    label: str
    split: str = ""
    bad: str = ""


@dataclass(eq=False)
class Listing:
    """A data set. Image i is `names[i]`, of class `class_names[labels[i]]`, in `SPLITS[splits[i]]`; i is its id.

    `read(i)` gives what `decode` takes. `bad` names images known to be bad, and why; it grows as more are met.
    """

    form: str
    root: str
    class_names: list[str]
    names: list[str]
    labels: np.ndarray
    splits: np.ndarray
    read: Callable[[int], Path | bytes]
    problems: list[Problem] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)

    def where(self, i: int) -> str:
        """Image i in an error's words."""
        return shown(os.path.join(self.root, self.names[i]))


_OPEN: weakref.WeakValueDictionary[str, Listing] = weakref.WeakValueDictionary()


def opened(config: FolderData) -> Listing:
    """The listing, made and looked at quickly once for all sources in use. Raises `UserError` for its first fatal problem."""
    found = _OPEN.get(config.dir)
    if found is None:
        from vit.data.check import quick  # which looks at listings

        found = _OPEN[config.dir] = listing(config)
        quick(found)
    for what, where, fix, fatal in found.problems:
        if fatal:
            raise UserError(what, where, fix)
    return found


def listing(config: FolderData) -> Listing:
    """Look at a data set. Problems are part of the result; `UserError` is raised only where there is nothing to list."""
    from vit.data import prepared, table

    if not config.dir:
        raise UserError("--data.dir is missing", "the command line", "give a folder of images, a CSV or a JSONL file")
    if config.dir.startswith("hf:"):
        return prepared.hugging_face(config.dir)
    root = Path(config.dir).expanduser()
    if root.is_file():
        return table.read([root], root.parent)
    if not root.is_dir():
        raise UserError(
            "there is no such folder of images", shown(str(root)), "give --data.dir, a folder, a CSV or a JSONL file"
        )
    if (found := prepared.find(root)) is not None:
        return found
    if tables := table.find(root):
        return table.read(tables, root)
    return class_folders(root)


def shown(text: str) -> str:
    """A file's name for people: bytes that aren't UTF-8, and halves of characters that a JSON may hold, as escapes."""
    try:
        return os.fsencode(text).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()


# ---- class folders ----


def class_folders(root: Path) -> Listing:
    """A folder of images for each class, in train, val and test folders or not."""
    problems: list[Problem] = []
    tops = _folders(root)
    named = {top: SPLIT_NAMES[top.lower()] for top in tops if top.lower() in SPLIT_NAMES and _folders(root / top)}
    if len(named) < len(tops):  # a class may be called train; then images lie in its folder
        named = {top: part for top, part in named.items() if not any(map(_is_image, _files(root / top)))}
    split = "train" in named.values() or (named and len(named) == len(tops))
    parts = sorted(named.items()) if split else [("", "")]
    if len(set(dict(parts).values())) < len(parts):
        what = f"two folders are the same split: {', '.join(top for top, _ in parts)}"
        problems.append(Problem(what, shown(str(root)), "leave one of train, one of val, one of test"))
    if unused := sorted(set(tops) - set(named)) if split else []:
        what = f"folders beside the splits are not used: {', '.join(map(shown, unused)):.80}"
        problems.append(Problem(what, shown(str(root)), "move what you want to use into a split", fatal=False))
    entries, classes = [], set()
    for top, part in parts:
        for name in _folders(root / top):
            classes.add(name)
            images = _walk(root / top / name, os.path.join(top, name), (_identity(root),), problems)
            entries += [Entry(image, name, part, bad) for image, bad in images]
        if stray := [f.name for f in _files(root / top) if _is_image(f)]:
            what = f"{len(stray):,} images lie in no class folder and are not used, as {shown(min(stray))!r:.40}"
            fix = (
                "put each into the folder of its class" if classes else "make a folder for each class, or a table of path,label"
            )
            problems.append(Problem(what, shown(str(root / top)), fix, fatal=False))
    if not entries:
        what = next((p.what for p in problems), "there are no images in it")
        raise UserError(what, shown(str(root)), "make a folder for each class, or a CSV file with the columns path and label")
    form = "class folders" + (f" in {', '.join(top for top, _ in parts)}" if split else "")
    return made(form, root, entries, sorted(classes), lambda name: root / name, problems)


def _folders(folder: Path) -> list[str]:
    return [f.name for f in _files(folder) if is_folder(f) and not f.name.startswith("__")]


def _files(folder: Path) -> "list[os.DirEntry[str]]":
    with os.scandir(folder) as files:
        return sorted((f for f in files if not f.name.startswith(".")), key=lambda f: f.name)


def is_folder(file: "os.DirEntry[str]") -> bool:
    """Whether it is a folder, or a link to one."""
    try:
        return file.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_file(file: "os.DirEntry[str]") -> bool:
    try:
        return file.is_file()
    except OSError:
        return False


def _is_image(file: "os.DirEntry[str]") -> bool:
    if os.path.splitext(file.name)[1].lower() in ENDINGS:
        return not is_folder(file)
    if not _is_file(file):
        return False
    try:
        with open(file.path, "rb") as start:
            head = start.read(12)
    except OSError:
        return False  # whatever it is, nobody calls it an image
    return begins_an_image(head) and (head[:2] != b"BM" or head[6:10] == bytes(4))  # many a text begins with BM


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _walk(folder: Path, name: str, above: tuple[tuple[int, int], ...], problems: list[Problem]) -> Iterator[tuple[str, str]]:
    """Every image below a folder, by its name below the root, and why it's no good if that shows."""
    identity = _identity(folder)
    if identity in above:
        what, fix = "a symbolic link leads back to a folder that it lies in", "remove the link"
        problems.append(Problem(what, shown(str(folder)), fix))
        return
    if len(above) > DEEPEST:
        what, fix = f"it lies over {DEEPEST} folders deep, and isn't looked into", "move it up"
        problems.append(Problem(what, shown(str(folder)), fix))
        return
    for file in _files(folder):
        below = os.path.join(name, file.name)
        if is_folder(file):
            yield from _walk(folder / file.name, below, (*above, identity), problems)
        elif _is_image(file):
            yield below, "" if _is_file(file) else _no_file(file.path)


def _no_file(path: str) -> str:
    return "it is a link that leads nowhere" if os.path.islink(path) else "it is not a file"


# ---- what all forms share ----


def made(
    form: str,
    root: Path,
    entries: list[Entry],
    class_names: list[str],
    read: Callable[[str], Path | bytes],
    problems: list[Problem],
) -> Listing:
    """The listing of these images: sorted, split where nobody did, and looked at for what can't be trained on."""
    entries = sorted(entries)
    number = {name: i for i, name in enumerate(class_names)}
    names = [entry.name for entry in entries]
    bad = {i: entry.bad for i, entry in enumerate(entries) if entry.bad}
    for i, name in enumerate(names):
        if shown(name) != name and i not in bad:
            bad[i] = NOT_UTF8
    splits = np.array([SPLITS.index(entry.split) if entry.split else -1 for entry in entries], np.int8)
    labels = np.array([number[entry.label] for entry in entries], np.int32)
    found = Listing(form, str(root), class_names, names, labels, splits, lambda i: read(names[i]), problems, bad)
    split_by_content(found)
    problems += _faults(found)
    return found


def split_by_content(found: Listing) -> None:
    """Splits by content where there are none: 80 % train, 10 % val, 10 % test; with a test split 90 % train, 10 % val."""
    given = {SPLITS[i] for i in np.unique(found.splits) if i >= 0}
    if "val" in given:
        return
    if "test" in given:
        bounds, who = [0.9, 1.0], np.flatnonzero(found.splits == 0)
        found.form += ", val taken from train by content"
    else:
        bounds, who = [0.8, 0.9], np.arange(len(found.splits))
        found.form += ", split by content"
    with ThreadPoolExecutor() as pool:
        shares = list(pool.map(lambda i: _share(found, int(i)), who, chunksize=64))
    found.splits[who] = np.searchsorted(bounds, shares, side="right")


def _share(found: Listing, i: int) -> float:
    if i in found.bad and found.bad[i] != NOT_UTF8:
        return 0.0  # there may be nothing to read
    try:
        return content_share(found.read(i))
    except OSError as error:
        found.bad.setdefault(i, f"it can't be read: {error.strerror}")
        return 0.0


def content_share(source: Path | bytes) -> float:
    """A number in [0, 1) that follows from the bytes alone and is spread evenly: the top 53 bits of a SHA-256.

    It is taken of the length (8 bytes, little-endian) and the bytes; of more than 64 KiB only the first, middle and last 16.
    """
    if isinstance(source, bytes):
        length, part = len(source), lambda start, count: source[start : start + count]
        return _hashed(length, part)
    with source.open("rb") as file:
        return _hashed(os.fstat(file.fileno()).st_size, lambda start, count: os.pread(file.fileno(), count, start))


def _hashed(length: int, part: Callable[[int, int], bytes]) -> float:
    parts = [(0, length)] if length <= 4 * BLOCK else [(s, BLOCK) for s in (0, (length - BLOCK) // 2, length - BLOCK)]
    content = b"".join(part(start, count) for start, count in parts)
    digest = hashlib.sha256(length.to_bytes(8, "little") + content).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def _faults(found: Listing) -> Iterator[Problem]:
    """What keeps a classifier from being trained on these."""
    where, counts = shown(found.root), np.zeros((len(SPLITS), len(found.class_names)), int)
    np.add.at(counts, (found.splits.astype(int), found.labels), 1)
    by_content = "by content" in found.form
    for name in found.class_names:
        if shown(name) != name:
            yield Problem(f"the name of class {shown(name)!r:.40} is not UTF-8", where, "rename its folder")
    if len(found.class_names) < 2:
        yield Problem("all images are of one class", where, "give images of at least two classes")
    for name, count in zip(found.class_names, counts.T, strict=True):
        if not count.sum():
            yield Problem(f"class {shown(name)!r:.40} has no images", where, "put images into its folder, or remove it")
        elif not count[0]:
            held = " and ".join(s for s, n in zip(SPLITS, count, strict=True) if n)
            what = f"class {shown(name)!r:.40} is only in {held}, there is none to train on"
            fix = "add images of it" if by_content else "put some into train, or remove them"
            yield Problem(what, where, fix)
    for split, count in zip(SPLITS[:2], counts[:2], strict=True):
        if not count.sum():
            fix = f"add images, or put some into a folder {split}" if by_content else f"put images into a folder {split}"
            yield Problem(f"there are no images to {'train on' if split == 'train' else 'validate on'}", where, fix)
