"""Sets with masks with something wrong: `CASES` name → function(folder) that provokes the `UserError` in an empty folder."""

import io
import json
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from PIL import Image

from vit.config import MaskData
from vit.data import maskcheck, masktfds
from vit.data.masks import MaskImages
from vit.report.check import place
from vit.report.maskcheck import write as write_findings


def image(seed: int = 0, height: int = 24, width: int = 32, kind: str = "jpeg") -> bytes:
    """A picture's file."""
    out = io.BytesIO()
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3)).astype(np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(out, kind)
    return out.getvalue()


def png(pixels: Any, mode: str | None = None, kind: str = "png") -> bytes:
    """A mask's file; mode P with a palette of odd colours, which is none of the reader's business."""
    out = io.BytesIO()
    picture = Image.fromarray(np.asarray(pixels))
    if mode == "P":
        picture = Image.fromarray(np.asarray(pixels, np.uint8))
        picture.putpalette([(i * 37 + 5) % 256 for i in range(768)])
    elif mode == "1":
        picture = Image.fromarray(np.asarray(pixels).astype(bool))
    picture.save(out, kind)
    return out.getvalue()


def ids(seed: int = 0, height: int = 24, width: int = 32, K: int = 3) -> np.ndarray:
    """A mask of ids 0 to K - 1, all of them on it."""
    blocks = np.random.default_rng(seed).integers(0, K, (height // 4, width // 4)).astype(np.uint8)
    blocks.flat[:K] = np.arange(K)
    return blocks.repeat(4, 0).repeat(4, 1)


def write(root: Path, files: dict[str, bytes | str]) -> Path:
    """Files by name."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def whole(train: int = 6, val: int = 3) -> dict[str, bytes | str]:
    """A good set in images/train, masks/train and so on."""
    files: dict[str, bytes | str] = {}
    for split, count, start in (("train", train, 0), ("val", val, 100)):
        for i in range(start, start + count):
            files |= {f"images/{split}/{i:03d}.jpg": image(i), f"masks/{split}/{i:03d}.png": png(ids(i))}
    return files


def config(root: Path, **changes: Any) -> MaskData:
    """Of small crops."""
    return replace(MaskData(dir=str(root), size=(16, 16)), **changes)


class Fault(NamedTuple):
    """What is put over a good set (None: taken away), or, with `alone`, into an empty folder; and where the error must be."""

    files: dict[str, bytes | str | None]
    words: str
    where: str
    settings: dict[str, Any] = {}  # noqa: RUF012 - never changed
    alone: bool = False


def built(root: Path, fault: Fault) -> Path:
    """The set with its fault."""
    files = {**({} if fault.alone else whole()), **fault.files}
    root.mkdir(parents=True, exist_ok=True)
    return write(root, {name: content for name, content in files.items() if content is not None})


def coco(changes: dict[str, Any] | None = None, segmentation: Any = None, **annotation: Any) -> dict[str, bytes | str]:
    """A set of instances with something else in it."""
    shape = segmentation if segmentation is not None else [[1, 1, 9, 1, 9, 9]]
    content: dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 24, "width": 32} for i in range(20)],
        "annotations": [{"id": 7, "image_id": 0, "category_id": 3, "segmentation": shape, **annotation}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
    }
    content["annotations"] += [{"id": 8, "image_id": 1, "category_id": 5, "segmentation": [[1, 1, 9, 1, 9, 9]]}]
    files: dict[str, bytes | str] = {f"images/{i}.jpg": image(i) for i in range(20)}
    return {**files, "instances.json": json.dumps({**content, **(changes or {})})}


def panoptic(infos: Any = None, changes: dict[str, Any] | None = None, mask: bool = True) -> dict[str, bytes | str]:
    """A panoptic set with something else in it: two segments, 1 and 258, on each image."""
    files: dict[str, bytes | str] = {}
    pixels = np.zeros((24, 32, 3), np.uint8)
    pixels[:12] = (1, 0, 0)
    pixels[12:, :16] = (2, 1, 0)
    good = [{"id": 1, "category_id": 3}, {"id": 258, "category_id": 5}]
    content: dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 24, "width": 32} for i in range(20)],
        "annotations": [
            {"image_id": i, "file_name": f"{i}.png", "segments_info": good if i or infos is None else infos} for i in range(20)
        ],
        "categories": [{"id": 3, "name": "sky", "isthing": 0}, {"id": 5, "name": "dog", "isthing": 1}],
    }
    for i in range(20):
        files |= {f"images/{i}.jpg": image(i)} | ({f"panoptic/{i}.png": png(pixels)} if i or mask else {})
    return {**files, "panoptic.json": json.dumps({**content, **(changes or {})})}


PALETTE = "0 0 0 ground\n255 0 0 house\n0 255 0 tree\n"
COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [9, 9, 200]], np.uint8)
LISTS = {f"{split}.txt": "".join(f"{i:03d}\n" for i in numbers) for split, numbers in
         {"train": range(6), "val": range(6, 9)}.items()}  # fmt: skip
LISTED: dict[str, bytes | str] = {
    **{f"images/{i:03d}.jpg": image(i) for i in range(9)}, **{f"masks/{i:03d}.png": png(ids(i)) for i in range(9)}, **LISTS
}  # fmt: skip
FIRST, MASK = "images/train/000.jpg", "masks/train/000.png"
DEEP = cv2.imencode(".png", np.arange(24 * 32 * 3, dtype=np.uint16).reshape(24, 32, 3))[1].tobytes()
CUT = png(np.random.default_rng(0).integers(0, 3, (24, 32)).astype(np.uint8))[:-40]


def coloured(extra: int = 0) -> dict[str, bytes | str | None]:
    """Masks of colours; the first with a pixel of another one."""
    files: dict[str, bytes | str | None] = {n: png(COLOURS[ids(int(n[-7:-4]))]) for n in whole() if n.startswith("masks")}
    pixels = COLOURS[ids(0)].copy()
    pixels[5, 7] = COLOURS[extra]
    return {**files, MASK: png(pixels)}


def listed(**changes: str | bytes | None) -> Fault:
    """Lists with something else in one: given by the list's stem."""
    return Fault({**LISTED, **{f"{name}.txt": text for name, text in changes.items()}}, "", "", alone=True)


def said(fault: Fault, words: str, where: str) -> Fault:
    """With what the error says."""
    return fault._replace(words=words, where=where)


def alone(files: Any, words: str, where: str, **settings: Any) -> Fault:
    """In an empty folder."""
    return Fault(files, words, where, settings, True)


_FAULTS: dict[str, Fault] = {
    # folders
    "no masks": alone({"images/a.jpg": image()}, "there are no masks in it", "set"),
    "no images": alone({"masks/a.png": png(ids())}, "no images", "set"),
    "names in common": alone({"images/a.jpg": image(), "masks/b.png": png(ids())}, "no image has a mask", "set"),
    "image without mask": Fault({MASK: None}, "this image has no mask", FIRST),
    "mask without image": Fault({"masks/train/900.png": png(ids())}, "this mask has no image", "masks/train/900.png"),
    "several folders of masks": Fault({"labels/train/000.png": png(ids())}, "several folders hold a mask", "set"),
    "several masks": Fault({MASK: None, "masks/train/000_mask.png": png(ids()), "masks/train/000_gt.png": png(ids())},
                                  "several masks could be its", FIRST),
    "one mask of two images": Fault({"images/train/000.png": image(kind="png")}, "this mask could be that of", MASK),
    "nothing to train on": Fault({name: None for name in whole() if "train" in name}, "to train on", "set"),
    "val without masks": Fault({n: None for n in whole() if "masks/val" in n}, "this image has no mask", "images/val/100"),
    # files
    "sizes differ": Fault({MASK: png(ids(0, 32, 24))}, "the mask has 24 x 32 pixels, its image 32 x 24", MASK),
    "id out of range": Fault({MASK: png(ids(0, K=5)), "classes.txt": "a\nb\nc"}, "the mask has the id 3 at x 12, y 0", MASK),
    "JPEG masks": Fault({MASK: image(0)}, "the mask is a JPEG", MASK),
    "mask not a PNG": Fault({MASK: png(ids(), kind="bmp")}, "the mask is not a PNG", MASK),
    "mask cut off": Fault({MASK: CUT}, "it is cut off", MASK),
    "mask empty": Fault({MASK: b""}, "the mask is empty", MASK),
    "image cut off": Fault({FIRST: image(0, kind="png")[:-30]}, "it is cut off", FIRST),
    "16 bits a colour": Fault({MASK: DEEP}, "16 bits a colour", MASK),
    # what ids mean
    "all void": Fault({n: png(ids() * 0 + 255) for n in whole() if "masks" in n}, "all pixels of the training masks", "set"),
    "all void, named": Fault({n: png(ids() * 0 + 255) for n in whole() if "masks" in n} | {"classes.txt": "a\nb"},
                                    "all pixels of the 6 training masks looked at are void", "set"),
    "one id": Fault({n: png(ids() * 0 + 4) for n in whole() if "masks" in n}, "training masks have the id 4", "set"),
    "void covers all": Fault({"classes.txt": "a\nb\nc"}, "leaves no class of 3", "set", {"void": (0, 1, 2)}),
    "void leaves one": Fault({"classes.txt": "a\nb\nc"}, "leaves only one class of 3", "set", {"void": (0, 1)}),
    "names fewer than ids": Fault({}, "the 2 classes have 0 to 1", "masks", {"names": ("a", "b")}),
    "names twice": Fault({}, "--data.names has 'a' twice", "command line", {"names": ("a", "b", "a")}),
    "over 255 classes": Fault({MASK: png(np.arange(768).reshape(24, 32).astype(np.uint16))}, "767 classes", "set"),
    "colours without palette": Fault(coloured(), "there is no palette file", "masks"),
    "colour not in the palette": Fault({**coloured(3), "palette.txt": PALETTE}, "the colour 9 9 200 at x 7, y 5", MASK),
    "grey not in the palette": Fault({"palette.txt": "0 0 0 a\n255 255 255 b\n"}, "the grey level", "masks"),
    "palette line": Fault({**coloured(), "palette.txt": PALETTE + "1 2 house"}, "has no colour: '1 2 house'", "line 4"),
    "palette of no colours": Fault({**coloured(), "palette.txt": "a\nb\nc"}, "the palette has no colours", "palette.txt"),
    "colour beyond 255": Fault({**coloured(), "palette.txt": PALETTE + "1 2 300 x"}, "1 2 300 is no colour", "line 4"),
    "colour twice": Fault({**coloured(), "palette.txt": PALETTE + "0 255 0 x"}, "colour '0 255 0' stands twice", "line 4"),
    "name twice": Fault({**coloured(), "palette.txt": PALETTE + "1 255 0 house"}, "name 'house' stands twice", "line 4"),
    "table of colours": Fault({**coloured(), "class_dict.csv": "name,r,g,b\na,1,2\n"}, "doesn't have what", "line 2"),
    "id too large": Fault({"classes.txt": "0 a\n70000 b\n"}, "70000 can't be the id", "line 2"),
    "empty names": Fault({"classes.txt": "\n\n"}, "the file of class names is empty", "classes.txt"),
    "empty name": Fault({"classes.txt": "a\n\nc\n"}, "this line is empty", "classes.txt, line 2"),
    "names not UTF-8": Fault({"classes.txt": b"caf\xe9\n"}, "not UTF-8", "classes.txt"),
    # lists
    "list names a missing file": said(listed(train="000\n900\n"), "'900' isn't there", "train.txt, line 2"),
    "list of nothing there": said(listed(train="900\n", val="901\n"), "'900' isn't there", "train.txt, line 1"),
    "list with three values": said(listed(train="000 a b\n001\n"), "this line has 3 values", "train.txt, line 1"),
    "image in two lists": said(listed(val="006\n003\n"), "'images/003.jpg' stands in train.txt, line 4 too", "val.txt"),
    "empty list": said(listed(val="\n"), "this list is empty", "val.txt"),
    "list leads out": said(listed(val="006\n../secret.jpg\n"), "'../secret.jpg' leads out", "val.txt, line 2"),
    "list not UTF-8": said(listed(val=b"006\n\xe9\n"), "this line is not UTF-8", "val.txt, line 2"),
    "two lists of a split": said(listed(valid="006\n"), "two lists are the same split", "set"),
    "listed image without mask": alone({**LISTED, "masks/003.png": None}, "this image has no mask", "images/003.jpg"),
    "listed image with two masks": alone(
        {**LISTED, "masks/003.png": None, "masks/003_mask.png": png(ids()), "masks/003_gt.png": png(ids())},
        "several masks could be its", "images/003.jpg"),
    "several sets of lists": alone(
        {f"VOC{year}/ImageSets/Segmentation/train.txt": "a" for year in (2007, 2012)}, "several sets with lists", "set"),
    "name that could be two files": alone({**LISTED, "images/b/003.jpg": image()}, "'003' could be", "train.txt, line 4"),
    # COCO
    "JSON cut off": alone({**coco(), "instances.json": '{"images": ['}, "this is not JSON", "instances.json"),
    "JSON of something else": alone({"instances.json": "[]"}, "it has no images and annotations", "instances.json"),
    "JSON without categories": alone(coco({"categories": None}), "its categories are not a list", "instances.json"),
    "several JSONs": alone(coco() | {"instances_b.json": coco()["instances.json"]}, "several files have annotations", "set"),
    "category without name": alone(coco({"categories": [{"id": 3}]}), "a category needs an id", "instances.json"),
    "category of two names": alone(
        coco({"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]}), "category 3 is both", "instances.json"),
    "two categories of a name": alone(
        coco({"categories": [{"id": 3, "name": "a"}, {"id": 5, "name": "a"}]}), "two categories are called", "instances.json"),
    "JSON without images": alone(coco({"images": []}), "which is not among the images", "instances.json"),
    "JSON whose images are gone": alone(
        {"instances.json": coco()["instances.json"]}, "'0.jpg' isn't there", "instances.json, image 0"),
    "image without size": alone(
        coco({"images": [{"id": 0, "file_name": "0.jpg"}, {"id": 1, "file_name": "1.jpg", "height": 24, "width": 32}]}),
        "this image has no id, file_name, height and width", "image 0"),
    "images of one id": alone(
        coco({"images": [{"id": 0, "file_name": f"{i}.jpg", "height": 24, "width": 32} for i in (0, 1)]}),
        "two images have this id", "image 0"),
    "image named twice": alone(
        coco({"images": [{"id": i, "file_name": "0.jpg", "height": 24, "width": 32} for i in (0, 1)]}),
        "'images/0.jpg' is named twice", "image 1"),
    "annotation of no image": alone(coco(image_id=99), "annotation 7 is of image 99", "instances.json"),
    "annotation of no category": alone(coco(category_id=4), "annotation 7: its category 4", "image 0"),
    "polygon of two points": alone(coco(segmentation=[[1, 1, 2, 2]]), "its polygon has 2 points", "image 0"),
    "polygon of words": alone(coco(segmentation=[["a", "b"] * 3]), "not a list of x and y", "image 0"),
    "polygon far away": alone(coco(segmentation=[[1, 1, 1e12, 1, 9, 9]]), "leads far out", "image 0"),
    "no polygon": alone(coco(segmentation=[]), "it has no polygon", "image 0"),
    "run lengths of another size": alone(
        coco(segmentation={"size": [32, 24], "counts": [768]}), "its run lengths are of size [32, 24]", "image 0"),
    "run lengths too short": alone(
        coco(segmentation={"size": [24, 32], "counts": [1, 2, 3]}), "its run lengths add up to 6", "image 0"),
    "run lengths of nothing": alone(coco(segmentation={"size": [24, 32]}), "no list of numbers", "image 0"),
    "run lengths damaged": alone(
        coco(segmentation={"size": [24, 32], "counts": "01"}), "of an annotation add up to 1", "instances.json, image 0"),
    "panoptic mask missing": alone(panoptic(mask=False), "panoptic mask \"0.png\" isn't there", "panoptic.json, image 0"),
    "segment not in segments_info": alone(
        panoptic([{"id": 1, "category_id": 3}]), "0.png has the segment 258", "panoptic.json, image 0"),
    "segment of no category": alone(panoptic([{"id": 1, "category_id": 4}]), "its segment 1 is of category 4", "image 0"),
    "image without panoptic annotation": alone(
        panoptic(changes={"annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": []}]}),
        "it has 0 panoptic annotations", "image 0"),
    "COCO and other names": alone(coco(), "--data.names has 2 names, and the set 3 classes", "set", names=("a", "b")),
}  # fmt: skip
FAULTS = {f"masks: {name}": fault for name, fault in _FAULTS.items()}


def fault(name: str) -> Callable[[Path], None]:
    """Open a set with a fault as a run does."""

    def case(folder: Path) -> None:
        MaskImages(config(built(folder / "set", FAULTS[name]), **FAULTS[name].settings), "train")

    return case


def opened(folder: str, split: str = "train", **settings: Any) -> Callable[[Path], None]:
    """Open the good set, or something else beside it."""

    def case(root: Path) -> None:
        write(root / "set", whole())
        MaskImages(config(root / folder if folder else Path(""), **settings), split)

    return case


def no_folder(root: Path) -> None:
    """Nothing was given."""
    MaskImages(replace(config(root), dir=""), "train")


def checked(name: str, bad: str = "error") -> Callable[[Path], None]:
    """`vit check` of a set with a fault."""

    def case(folder: Path) -> None:
        settings = {**FAULTS[name].settings, "bad_images": bad}
        findings = maskcheck.examine(config(built(folder / "set", FAULTS[name]), **settings))
        out = place(str(folder / "set"), str(folder / "found"))
        write_findings(out, findings)
        maskcheck.verdict(findings, out)

    return case


def all_bad(folder: Path) -> None:
    """Every pair to validate with is bad, and bad ones may be skipped."""
    root = write(folder / "set", {**whole(400, 2), "masks/val/100.png": CUT, "masks/val/101.png": CUT})
    findings = maskcheck.examine(config(root, bad_images="skip"))
    maskcheck.verdict(findings, folder / "found")


def many_bad(folder: Path) -> None:
    """Over 1 % of the pairs are bad."""
    MaskImages(config(built(folder / "set", FAULTS["masks: mask cut off"]), bad_images="skip"), "train")


def tfds(features: dict[str, Any], data_source: Any = None, splits: tuple[str, ...] = ("train",)) -> Callable[[Path], None]:
    """A set of TFDS's with these features, that can't be read."""

    def case(folder: Path) -> None:
        def broken(**_: Any) -> Any:
            raise NotImplementedError

        info = types.SimpleNamespace(features=features, splits=splits, name="x", version="1")
        builder = types.SimpleNamespace(info=info, as_data_source=data_source or broken)
        write(folder, {"features.json": "{}"})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tensorflow_datasets.core.read_only_builder.builder_from_directory", lambda _: builder)
            masktfds.find(folder)

    return case


def images() -> dict[str, Any]:
    """An image and a mask, as TFDS has them."""
    from tensorflow_datasets.core.features import Image as Feature

    return {"image": Feature(), "segmentation_mask": Feature(shape=(None, None, 1))}


def several_prepared(folder: Path) -> None:
    """Two prepared sets."""
    masktfds.find(write(folder, {"a/1.0.0/features.json": "{}", "b/1.0.0/features.json": "{}"}))


CASES: dict[str, Callable[[Path], None]] = {
    **{name: fault(name) for name in FAULTS},
    "masks: no folder given": no_folder,
    "masks: no such folder": opened("nowhere"),
    "masks: a file as folder": opened("set/images/train/000.jpg"),
    "masks: no such split": opened("set", "test"),
    "masks: too many bad": many_bad,
    "masks: check of bad pairs": checked("masks: mask cut off"),
    "masks: check of problems": checked("masks: image without mask"),
    "masks: check of names": checked("masks: void covers all"),
    "masks: check of void": checked("masks: all void, named"),
    "masks: check of bad validation": all_bad,
    "masks: TFDS set without masks": tfds({"image": None, "label": None}),
    "masks: TFDS set in order only": lambda folder: tfds(images())(folder),
    "masks: TFDS set with a split twice": lambda folder: tfds(images(), lambda **_: [], ("val", "validation"))(folder),
    "masks: several TFDS sets": several_prepared,
}
