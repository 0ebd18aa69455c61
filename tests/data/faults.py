"""Folders and tables of images with something wrong, or odd, in them: each with what must become of it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


class Fault(NamedTuple):
    """`make` builds it in a folder and may return what to give as --data.dir instead.

    With `error` training is refused, in words that match; with `bad` so many images can't be used; else `images` can be.
    """

    make: Callable[[Path], Path | None]
    error: str = ""
    bad: str = ""
    warning: str = ""
    images: int = 12


def image(path: Path, number: int = 0) -> Path:
    """A small PNG whose pixels are its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([number, *os.fsencode(path.name)]).integers(0, 256, (12, 12, 3), np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return path


def folders(root: Path, train: int = 4, val: int = 2) -> Path:
    """Cats and dogs, 12 images."""
    for n, (split, count) in enumerate((("train", train), ("val", val))):
        for m, name in enumerate(("cat", "dog")):
            for i in range(count):
                image(root / split / name / f"{i}.png", 100 * n + 10 * m)
    return root


ROWS = [
    f"{split}/{name}/{i}.png,{name},{split}"
    for split, n in (("train", 4), ("val", 2))
    for name in ("cat", "dog")
    for i in range(n)
]


def in_folders(change: Callable[[Path], object], **expected) -> Fault:
    def make(root: Path) -> None:
        change(folders(root))

    return Fault(make, **expected)


def in_csv(
    *more: str, header: str = "path,label,split", encoding: str = "utf-8", end: str = "\n", name: str = "all.csv", **expected
) -> Fault:
    """The cats and dogs in a table, with lines added."""

    def make(root: Path) -> Path:
        folders(root)
        (root / name).write_bytes(end.join([header, *ROWS, *more, ""]).encode(encoding))
        return root / name

    return Fault(make, **expected)


def in_jsonl(*more: str, **expected) -> Fault:
    def make(root: Path) -> Path:
        folders(root)
        rows = [json.dumps(dict(zip(("path", "label", "split"), row.split(","), strict=True))) for row in ROWS]
        (root / "all.jsonl").write_text("\n".join([*rows, *more, ""]))
        return root / "all.jsonl"

    return Fault(make, **expected)


def alone(name: str, content: bytes, **expected) -> Fault:
    def make(root: Path) -> Path:
        (root / name).write_bytes(content)
        return root / name

    return Fault(make, **expected)


def linked(name: str, target: str) -> Callable[[Path], object]:
    return lambda root: (root / name).symlink_to(target)


def outside(root: Path) -> None:
    beside = root.parent / f"{root.name}-outside"
    image(beside / "x.png", 7)
    (root / "train" / "cat" / "x.png").symlink_to(beside / "x.png")


def outside_folder(root: Path) -> None:
    beside = root.parent / f"{root.name}-outside"
    image(beside / "x.png", 7)
    (root / "train" / "cat" / "more").symlink_to(beside)


def one_class(root: Path) -> None:
    for split in ("train", "val"):
        image(root / split / "cat" / "0.png")


def empty_val(root: Path) -> None:
    """Split by content, all of it."""
    folders(root, val=0)
    (root / "val" / "cat").mkdir(parents=True)


def rubbish(root: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", ".hidden.png", "notes.txt", "desktop.ini"):
        (root / "train" / "cat" / name).write_bytes(b"not an image")
    (root / "__MACOSX" / "cat").mkdir(parents=True)
    (root / ".git").mkdir()


def deep(root: Path) -> None:
    image(root / "train" / "cat" / Path(*["a"] * 110) / "0.png")


def loose(root: Path) -> None:
    for i in range(3):
        image(root / f"{i}.png", i)


def unreadable(root: Path) -> None:
    (root / "train" / "cat" / "0.png").chmod(0)


def named(name: bytes) -> Callable[[Path], object]:
    return lambda root: image(root / "train" / "cat" / "0.png", 9).rename(root / "train" / "cat" / os.fsdecode(name))


FAULTS = {
    # folders
    "no folder": Fault(lambda root: root / "none", error="no such folder"),
    "an empty folder": Fault(lambda root: None, error="no images"),
    "empty class folders": Fault(lambda root: [(root / x).mkdir() for x in "ab"] and None, error="no images"),
    "a text for a folder": alone("notes.txt", b"hello\n", error="no column"),
    "an image for a folder": Fault(lambda root: image(root / "x.png"), error="no column"),
    "an empty class": in_folders(lambda root: (root / "train" / "bird").mkdir(), error="'bird' has no images"),
    "a class in val alone": in_folders(lambda root: image(root / "val" / "bird" / "0.png"), error="'bird' is only in val"),
    "a class in train alone": in_folders(lambda root: image(root / "train" / "bird" / "0.png"), images=13),
    "one class": Fault(one_class, error="of one class"),
    "an empty val": Fault(empty_val, images=8),
    "two folders of one split": in_folders(lambda root: image(root / "validation" / "cat" / "9.png"), error="same split"),
    "a folder beside the splits": in_folders(lambda root: image(root / "extra" / "cat" / "9.png"), warning="not used"),
    "images in no class folder": Fault(loose, error="lie in no class folder"),
    "loose images beside the classes": in_folders(lambda root: loose(root / "train"), warning="lie in no class folder"),
    "files that are no images": in_folders(rubbish),
    "folders in class folders": in_folders(lambda root: image(root / "train" / "cat" / "a" / "b" / "c.png"), images=13),
    "a folder called as an image": in_folders(lambda root: (root / "train" / "cat" / "x.jpg").mkdir()),
    "classes that differ in case": in_folders(lambda root: image(root / "train" / "Cat" / "0.png"), images=13),
    "a link that leads back": in_folders(linked("train/cat/back", ".."), error="leads back"),
    "a link to itself": in_folders(linked("train/cat/x.png", "x.png"), bad="leads nowhere"),
    "a folder that links to itself": in_folders(linked("train/cat/x", "x")),
    "a folder that links to itself above all": in_folders(linked("x", "x")),
    "a file that links to itself beside the classes": in_folders(linked("train/x.png", "x.png"), warning="no class folder"),
    "a hundred folders in folders": in_folders(deep, error="over 100 folders deep"),
    "a link to nothing": in_folders(linked("train/cat/x.png", "nothing.png"), bad="leads nowhere"),
    "a link out of the folder": in_folders(outside, images=13),
    "a link to a folder outside": in_folders(outside_folder, images=13),
    "a name that isn't UTF-8": in_folders(named(b"caf\xe9.png"), bad="not UTF-8"),
    "a name with a line break": in_folders(named(b"a\nb.png")),
    "a name of letters that no font has": in_folders(named("🐈漢字.png".encode())),
    "a class that isn't UTF-8": in_folders(lambda root: image(root / "train" / "\udcff" / "0.png"), error="not UTF-8"),
    "a pipe": in_folders(lambda root: os.mkfifo(root / "train" / "cat" / "x.jpg"), bad="not a file"),
    "a text called as an image": in_folders(lambda root: (root / "train" / "cat" / "x.jpg").write_text("x"), bad="not a JPEG"),
    "an empty file": in_folders(lambda root: (root / "train" / "cat" / "x.jpg").touch(), bad="is empty"),
    "a file without permission": in_folders(unreadable, bad="can't be read" if os.geteuid() else ""),
    # tables
    "a table": in_csv(),
    "a table with a byte order mark": in_csv(encoding="utf-8-sig"),
    "a table with Windows' line ends": in_csv(end="\r\n"),
    "a path that isn't there": in_csv("train/cat/77.png,cat,train", bad="isn't there"),
    "a path of a folder": in_csv("train/cat,cat,train", bad="not a file"),
    "a row without label": in_csv("train/cat/5.png,,train", error="no label"),
    "a row without path": in_csv(",cat,train", error="no path"),
    "a label below 0": in_csv("train/cat/5.png,-1,train", error="below 0"),
    "a row twice": in_csv("train/cat/0.png,cat,train", error="named twice"),
    "a path twice by other names": in_csv("train/./cat/../cat/0.png,cat,train", error="named twice"),
    "a path under two labels": in_csv("train/cat/0.png,dog,train", error="named twice"),
    "a path in two splits": in_csv("train/cat/0.png,cat,val", error="named twice"),
    "a path that leads out": in_csv("../x.png,cat,train", error="leads out"),
    "a path through a split that leads out": in_csv("train/../../x.png,cat,train", error="leads out"),
    "a path elsewhere": in_csv("/etc/hostname,cat,train", error="leads out"),
    "a table in Latin-1": in_csv("train/cat/é.png,cat,train", encoding="latin-1", error="not UTF-8"),
    "a table in UTF-16": in_csv(encoding="utf-16", error="no column"),
    "an unknown split": in_csv("train/cat/5.png,cat,holdout", error="no split 'holdout'"),
    "a row without split": in_csv("train/cat/5.png,cat,", error="have a split and some don't"),
    "a row with too many values": in_csv("train/cat/5.png,cat,train,x", error="4 values"),
    "a row with too few values": in_csv("train/cat/5.png", error="1 values"),
    "an open quote": in_csv('"train/cat/5.png,cat,train', error="not CSV|values"),
    "a value without end": in_csv("x" * 200_000 + ",cat,train", error="not CSV"),
    "a table without label": in_csv(header="path,lbl,split", error="no column label"),
    "a table without path": in_csv(header="pth,label,split", error="no column path"),
    "an empty table": alone("all.csv", b"", error="no column"),
    "a table of a header": alone("all.csv", b"path,label\n", error="names no images"),
    "a table of a broken header": alone("all.csv", b'"path,label\n', error="no column"),
    "zeros for a table": alone("all.csv", bytes(100), error="no column"),
    "a line that isn't JSON": in_jsonl("{", error="not JSON"),
    "a line that isn't an object": in_jsonl("[1, 2]", error="not a JSON object"),
    "a line of many brackets": in_jsonl("[" * 100_000, error="not JSON"),
    "a line without label": in_jsonl('{"path": "train/cat/5.png", "split": "train"}', error="no label"),
    "a line without path": in_jsonl('{"label": "cat", "split": "train"}', error="no path"),
    "a label of half a class": in_jsonl('{"path": "a.png", "label": 0.5, "split": "train"}', error="no label"),
    "a path that is a list": in_jsonl('{"path": ["a.png"], "label": "cat", "split": "train"}', error="no path"),
    "a path with a zero": in_jsonl('{"path": "a\\u0000.png", "label": "cat", "split": "train"}', error="no path"),
    "a path of half a letter": in_jsonl('{"path": "\\ud800.png", "label": "cat", "split": "train"}', error="isn't UTF-8"),
    "a lone key twice": in_jsonl('{"path": "val/cat/0.png", "path": "train/cat/0.png", "label": "cat"}', error="named twice"),
}  # fmt: skip
