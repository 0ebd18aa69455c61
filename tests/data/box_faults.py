"""Sets with boxes with something wrong: `CASES` name → function(folder) that provokes the `UserError` in an empty folder."""

import json
import os
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.data.mask_faults import image, write
from vit.config import BoxData
from vit.data import boxcheck, boxtfds
from vit.data.boxes import BoxImages
from vit.report.boxcheck import write as write_findings
from vit.report.check import place

HEIGHT, WIDTH = 24, 32
Files = dict[str, bytes | str]
BOX = (3, 5, 12, 20)  # xmin, ymin, xmax, ymax
PICTURES = {n: image(n, HEIGHT, WIDTH) for n in (*range(6), *range(100, 103))}


def parts() -> list[tuple[str, int]]:
    """Six images to train on, three to validate with."""
    return [("train" if n < 100 else "val", n) for n in PICTURES]


def xml(*objects: tuple[Any, ...], size: tuple[int, int] | None = (WIDTH, HEIGHT), extra: str = "", **fields: Any) -> str:
    """An annotation of VOC's: objects are name, xmin, ymin, xmax, ymax."""
    lines = ["<annotation>", f"<filename>{fields.pop('filename', 'x.jpg')}</filename>"]
    lines += [f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"] if size else []
    for name, *box in objects:
        lines += ["<object>", f"<name>{name}</name>", *(f"<{key}>{value}</{key}>" for key, value in fields.items()), "<bndbox>"]
        lines += [f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=False)]
        lines += ["</bndbox>", "</object>"]
    return "\n".join([*lines, extra, "</annotation>"])


def voc(first: str | bytes | None = None, **lists: str | bytes) -> Files:
    """A set of VOC's; `first` is the XML of image 000."""
    files: Files = {}
    for split, n in parts():
        files[f"JPEGImages/{n:03d}.jpg"] = PICTURES[n]
        files[f"Annotations/{n:03d}.xml"] = xml(("cat", *BOX), ("dog", 2, 2, 9, 9))
        name = f"ImageSets/Main/{split}.txt"
        files[name] = f"{files.get(name, '')}{n:03d}\n"
    files |= {} if first is None else {"Annotations/000.xml": first}
    return files | {f"ImageSets/Main/{name}.txt": text for name, text in lists.items()}


YAML = "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n"


def yolo(first: str | bytes | None = None, yaml: str | bytes | None = YAML) -> Files:
    """A set of YOLO's; `first` is the TXT of image 000."""
    files: Files = {"data.yaml": yaml} if yaml is not None else {}
    for split, n in parts():
        files[f"images/{split}/{n:03d}.jpg"] = PICTURES[n]
        files[f"labels/{split}/{n:03d}.txt"] = "0 0.5 0.5 0.25 0.5\n1 0.2 0.25 0.2 0.5\n"
    return files | ({} if first is None else {"labels/train/000.txt": first})


def coco(train: dict[str, Any] | None = None, **first: Any) -> Files:
    """A set of COCO's, a JSON for each split; `first` changes the first training annotation, `train` the training file."""
    files: Files = {}
    categories = [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}]
    for split in ("train", "val"):
        numbers = [n for part, n in parts() if part == split]
        content = {
            "images": [{"id": n, "file_name": f"{n:03d}.jpg", "height": HEIGHT, "width": WIDTH} for n in numbers],
            "annotations": [
                {"id": 10 * n + k, "image_id": n, "category_id": kind, "bbox": [4 + k, 5.5, 8, 10], "area": 40, "iscrowd": 0}
                for n in numbers for k, kind in enumerate((3, 9))
            ],
            "categories": categories,
        }  # fmt: skip
        if split == "train":
            content["annotations"][0] |= first
            content |= train or {}
        files[f"annotations/instances_{split}.json"] = json.dumps(content, indent=1)
        files |= {f"images/{split}/{n:03d}.jpg": PICTURES[n] for n in numbers}
    return files


def config(root: Path, **changes: Any) -> BoxData:
    """Of small crops."""
    return replace(BoxData(dir=str(root), size=(32, 48)), **changes)


class Fault(NamedTuple):
    """What lies in the folder, and what the error says and where. `drops`: `--data.bad-boxes drop` goes on without it."""

    files: dict[str, bytes | str | None]
    words: str
    where: str
    drops: bool = False
    settings: dict[str, Any] = {}  # noqa: RUF012 - never changed


def built(root: Path, fault: Fault) -> Path:
    """The set with its fault."""
    root.mkdir(parents=True, exist_ok=True)
    return write(root, {name: content for name, content in fault.files.items() if content is not None})


def flaw(files: Any, words: str, where: str, **settings: Any) -> Fault:
    """What may be dropped."""
    return Fault(files, words, where, True, settings)


XML, TXT, JSON = "Annotations/000.xml", "labels/train/000.txt", "instances_train.json"
TWICE = [{"id": i, "file_name": f"{i:03d}.jpg", "height": HEIGHT, "width": WIDTH} for i in (0, 0, 1)]
PATHS = [{"id": i, "file_name": "000.jpg", "height": HEIGHT, "width": WIDTH} for i in (0, 1)]
GONE = [{"id": n, "file_name": f"{n:03d}.jpg", "height": HEIGHT, "width": WIDTH} for n in (*range(6), 900)]
HIGH = {**GONE[0], "height": 10**400}
HALF = {**GONE[0], "file_name": "\ud800.jpg"}  # half of a character
ENTITY = "<!DOCTYPE a [<!ENTITY b 'c'>]>" + xml(("cat", *BOX))

_FAULTS: dict[str, Fault] = {
    # VOC
    "VOC no area": flaw(voc(xml(("dog", 2, 2, 9, 9), ("cat", 5, 5, 5, 5))), "it has no area (xmin 5 ymin 5 xmax 5 ymax 5)",
                        f"{XML}, line 15"),
    "VOC reversed": flaw(voc(xml(("cat", 9, 5, 3, 12))), "its end lies before its start", f"{XML}, line 6"),
    "VOC not a number": flaw(voc(xml(("cat", "nan", 5, 9, 12))), "not finite (xmin nan", f"{XML}, line 6"),
    "VOC a word": flaw(voc(xml(("cat", "left", 5, 9, 12))), "not finite (xmin left", f"{XML}, line 6"),
    "VOC endless": flaw(voc(xml(("cat", 3, 5, "inf", 12))), "not finite", f"{XML}, line 6"),
    "VOC side missing": flaw(voc(xml(("cat", 3, 5, 9))), "(xmin 3 ymin 5 xmax 9 no ymax)", f"{XML}, line 6"),
    "VOC outside": flaw(voc(xml(("cat", 40, 5, 50, 12))), "it lies outside of its image", f"{XML}, line 6"),
    "VOC class not named": flaw(voc(xml(("fox", *BOX))), "class 'fox' is not among the classes", f"{XML}, line 6",
                                names=("cat", "dog")),
    "VOC object without name": flaw(voc(xml(("", *BOX))), "its class '' is not among the classes", f"{XML}, line 6"),
    "VOC cut off": flaw(voc(xml(("cat", *BOX))[:150]), "it is not XML: ", XML),
    "VOC encoding": flaw(
        voc(b"<?xml version='1.0' encoding='gbk'?><annotation></annotation>"), "in the encoding that it names", XML),
    "VOC entities": flaw(voc(ENTITY), "it defines entities, in line 1", XML),
    "VOC without image": flaw({**voc(), "JPEGImages/000.jpg": None}, "this XML has no image", XML),
    "VOC listed without XML": flaw(voc(train="000\n001\n900\n"), "'900' has no XML", "train.txt, line 3"),
    "VOC listed twice": flaw(voc(val="100\n001\n"), "'001' stands in a list before", "val.txt, line 2"),
    "VOC two XML of an image": flaw(
        {**{f"{i}.jpg": PICTURES[i] for i in range(6)}, **{f"{i}.xml": xml(("cat", *BOX)) for i in range(6)},
         "x.xml": xml(("cat", *BOX), filename="3.jpg")}, "its image '3.jpg' is that of '3.xml', too", "x.xml"),
    "VOC no size and no image": flaw(
        {**voc(xml(("cat", *BOX), size=None)), "JPEGImages/000.jpg": b"hello"}, "it says no size, and its image can't be", XML),
    "VOC list not UTF-8": flaw(voc(train=b"000\n\xe9\n001\n"), "this line is not UTF-8", "train.txt, line 2"),
    "VOC two lists of a split": Fault(voc(valid="100\n"), "two lists are the same split", "ImageSets/Main"),
    "VOC several sets": Fault(
        {f"VOC{year}/ImageSets/Main/train.txt": "a" for year in (2007, 2012)}, "several sets with lists", "set"),
    # YOLO
    "YOLO no area": flaw(yolo("0 0.5 0.5 0.25 0\n"), "it has no area (0 0.5 0.5 0.25 0)", f"{TXT}, line 1"),
    "YOLO below zero": flaw(yolo("0 0.5 0.5 0.25 0.5\n\n0 0.5 0.5 -0.2 0.1"), "its end lies before", f"{TXT}, line 3"),
    "YOLO not a number": flaw(yolo("0 0.5 nan 0.25 0.5\n"), "not finite", f"{TXT}, line 1"),
    "YOLO polygon not a number": flaw(yolo("0 0.1 0.1 nan 0.1 0.5 0.5\n"), "not finite", f"{TXT}, line 1"),
    "YOLO pixels": flaw(yolo("0 16 12 8 12\n"), "it lies outside of its image", f"{TXT}, line 1"),
    "YOLO unknown class": flaw(yolo("2 0.5 0.5 0.25 0.5\n"), "its class 2 is not among the classes", f"{TXT}, line 1"),
    "YOLO four values": flaw(yolo("0 0.5 0.5 0.25\n"), "this line is not a class and four numbers: '0 0.5", f"{TXT}, line 1"),
    "YOLO words": flaw(yolo("cat 0.5 0.5 0.25 0.5\n"), "this line is not a class and", f"{TXT}, line 1"),
    "YOLO bytes": flaw(yolo(b"\xff\xfe 0 0 0 0\n"), "this line is not a class and", f"{TXT}, line 1"),
    "YOLO six values": flaw(yolo("0 0.5 0.5 0.25 0.5 0.9\n"), "this line is not a class and", f"{TXT}, line 1"),
    "YOLO without image": flaw({**yolo(), "images/train/000.jpg": None}, "these labels have no image", TXT),
    "YOLO labels of two": flaw({**yolo(), "images/train/000.png": image(kind="png")}, "are those of", "train/000.png"),
    "YOLO names and nc": Fault(yolo(yaml=YAML + "nc: 3\n"), "nc is '3', and there are 2 names", "data.yaml, line 4"),
    "YOLO names of names": Fault(yolo(yaml="names:\n  a: cat\n"), "its names are not by numbers", "data.yaml, line 1"),
    "YOLO names one word": Fault(yolo(yaml="names: cat\n"), "its names are no list of names", "data.yaml, line 1"),
    "YOLO names nested": Fault(yolo(yaml="train: x\nnames: [[cat]]\n"), "the value of names is nested", "data.yaml, line 2"),
    "YOLO names open": Fault(yolo(yaml="names: [cat, dog\n"), "this is not YAML", "data.yaml, line 2"),
    "YOLO folder that isn't there": Fault(
        yolo(yaml=YAML.replace("images/val", "nowhere")), "val is 'nowhere', which isn't there", "data.yaml, line 3"),
    "YOLO splits that share": Fault(
        yolo(yaml=YAML.replace("images/val", "images")), "is in train and in val", "data.yaml, line 3"),
    "YOLO yaml not UTF-8": Fault(yolo(yaml=b"names: [caf\xe9]\n"), "this file is not UTF-8", "data.yaml"),
    "YOLO list": flaw(
        {**yolo(yaml=None), "train.txt": "".join(f"images/train/{n:03d}.jpg\n" for n in (*range(6), 900)),
         "val.txt": "images/val/100.jpg\nimages/val/101.jpg\nimages/val/102.jpg\n"},
        "'images/train/900.jpg' isn't there", "train.txt, line 7"),
    # COCO
    "COCO no area": flaw(coco(bbox=[4, 5, 0, 3]), "it has no area (bbox [4, 5, 0, 3])", f"{JSON}, annotation 0, line "),
    "COCO below zero": flaw(coco(bbox=[4, 5, 3, -2]), "its end lies before its start", f"{JSON}, annotation 0, line "),
    "COCO not a number": flaw(coco(bbox=[float("nan"), 5, 3, 2]), "not finite (bbox [NaN", f"{JSON}, annotation 0, line "),
    "COCO endless": flaw(coco(bbox=[4, 5, float("inf"), 2]), "not finite", f"{JSON}, annotation 0, line "),
    "COCO outside": flaw(coco(bbox=[-9, 5, 3, 2]), "it lies outside of its image", f"{JSON}, annotation 0, line "),
    "COCO three numbers": flaw(coco(bbox=[1, 2, 3]), "bbox is not four numbers: [1, 2, 3]", f"{JSON}, annotation 0, line "),
    "COCO no bbox": flaw(coco(bbox=None), "its bbox is not four numbers", f"{JSON}, annotation 0, line "),
    "COCO unknown category": flaw(coco(category_id=4), "its category 4 is not among", f"{JSON}, annotation 0, line "),
    "COCO category in quotes": flaw(coco(category_id="3"), 'its category "3" is not among', f"{JSON}, annotation 0, line "),
    "COCO annotation twice": flaw(coco(id=1), "two annotations have this id", f"{JSON}, annotation 1, line "),
    "COCO of no image": flaw(coco(image_id=900), "annotation 0 is of image 900, which is not among", f"{JSON}, line "),
    "COCO image twice": flaw(coco({"images": TWICE}), "two images have this id", f"{JSON}, image 0, line "),
    "COCO file twice": flaw(coco({"images": PATHS}), "is named twice", f"{JSON}, image 1"),
    "COCO image of endless height": flaw(coco({"images": [HIGH, *TWICE[2:]]}), "image has no id", f"{JSON}, image 0"),
    "COCO name that is none": flaw(coco({"images": [HALF, *TWICE[2:]]}), "isn't there", f"{JSON}, image 0, line "),
    "COCO image missing": flaw(coco({"images": GONE}), "'900.jpg' isn't there", f"{JSON}, image 900, line "),
    "COCO image without size": flaw(coco({"images": [{"id": 0, "file_name": "000.jpg"}, *TWICE[2:]]}),
                                    "this image has no id, file_name, height and width", f"{JSON}, image 0, line "),
    "COCO two categories of a name": Fault(
        coco({"categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "cat"}]}), "category 9 is both", "instances_val.json"),
    "COCO cut off": Fault({**coco(), f"annotations/{JSON}": '{"images": ['}, "this is not JSON", JSON),
    # all forms
    "nothing": Fault({"a.jpg": image()}, "there are no images with boxes in it", "set"),
    "no box to train on": Fault(yolo("") | {f"labels/train/{n:03d}.txt": "" for n in range(6)}, "no boxes to train on", "set"),
    "no box to validate with": Fault(yolo() | {f"labels/val/{n}.txt": "" for n in range(100, 103)}, "validate with", "set"),
    "names of other number": Fault(coco(), "--data.names has 1 names, and the set 2", "set", settings={"names": ("a",)}),
    "names twice": Fault(yolo(), "two classes are called 'a'", "set", settings={"names": ("a", "a")}),
    "another size": Fault({**voc(xml(("cat", *BOX), size=(64, 48)))},
                          "its annotation is of 64 x 48 pixels, and it has 32 x 24", "JPEGImages/000.jpg"),
    "image cut off": Fault({**yolo(), "images/train/000.jpg": PICTURES[0][:200]}, "this image can't be used", "000.jpg"),
    "image empty": Fault({**yolo(), "images/train/000.jpg": b""}, "it is empty", "images/train/000.jpg"),
}  # fmt: skip
FAULTS = {f"boxes: {name}": fault for name, fault in _FAULTS.items()}


def read_all(root: Path, split: str = "train", **settings: Any) -> list[dict[str, Any]]:
    """The examples of a split."""
    return list(BoxImages(config(root, **settings), split))


def fault(name: str) -> Callable[[Path], None]:
    """Read a set with a fault."""

    def case(folder: Path) -> None:
        read_all(built(folder / "set", FAULTS[name]), **FAULTS[name].settings)

    return case


def opened(**settings: Any) -> Callable[[Path], None]:
    """Read the good set, or something else."""

    def case(folder: Path) -> None:
        root = write(folder / "set", {**voc(), "empty.json": "[]"})
        split = settings.get("split", "train")
        named = {key: value.format(root=root) for key, value in settings.items() if key != "split"}
        BoxImages(replace(config(root), **named), split)

    return case


def checked(name: str) -> Callable[[Path], None]:
    """`vit check` of a set with a fault."""

    def case(folder: Path) -> None:
        findings = boxcheck.examine(config(built(folder / "set", FAULTS[name]), **FAULTS[name].settings))
        out = place(str(folder / "set"), str(folder / "found"))
        write_findings(out, findings)
        boxcheck.verdict(findings, out)

    return case


def pipe(folder: Path) -> None:
    """An image that would make us wait."""
    root = write(folder / "set", yolo())
    (root / "images/train/000.jpg").unlink()
    os.mkfifo(root / "images/train/000.jpg")
    read_all(root)


def link(folder: Path) -> None:
    """An image that leads nowhere."""
    root = write(folder / "set", yolo())
    (root / "images/train/000.jpg").unlink()
    (root / "images/train/000.jpg").symlink_to("nowhere.jpg")
    read_all(root)


def tfds(features: dict[str, Any], data_source: Any = None, splits: tuple[str, ...] = ("train",)) -> Callable[[Path], None]:
    """A set of TFDS's with these features, that can't be read."""

    def case(folder: Path) -> None:
        def broken(**_: Any) -> Any:
            raise NotImplementedError

        info = types.SimpleNamespace(features=features, splits=splits, name="x", version="1")
        builder = types.SimpleNamespace(info=info, as_data_source=data_source or broken)
        write(folder / "set", {"features.json": "{}"})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tensorflow_datasets.core.read_only_builder.builder_from_directory", lambda _: builder)
            boxtfds.find(folder / "set")

    return case


WITH_BOXES = {"image": None, "objects": types.SimpleNamespace(feature={"bbox": None, "label": None})}
CASES: dict[str, Callable[[Path], None]] = {
    **{name: fault(name) for name in FAULTS},
    "boxes: no folder given": opened(dir=""),
    "boxes: no such folder": opened(dir="{root}/nowhere"),
    "boxes: a file as folder": opened(dir="{root}/JPEGImages/000.jpg"),
    "boxes: no such annotations": opened(annotations="{root}/nowhere.json"),
    "boxes: annotations of something else": opened(annotations="{root}/empty.json"),
    "boxes: no such split": opened(split="test"),
    "boxes: a pipe": pipe,
    "boxes: a link to nowhere": link,
    "boxes: check of bad boxes": checked("boxes: YOLO no area"),
    "boxes: check of bad images": checked("boxes: another size"),
    "boxes: check of problems": checked("boxes: no box to train on"),
    "boxes: TFDS set without boxes": tfds({"image": None, "label": None}),
    "boxes: TFDS set in order only": tfds(WITH_BOXES),
    "boxes: TFDS set with a split twice": tfds(WITH_BOXES, lambda **_: [], ("val", "validation")),
}
