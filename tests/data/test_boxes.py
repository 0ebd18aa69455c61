"""Sets with boxes: every form that is found, what ids become, and that boxes move with their pixels."""

import io
import json
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.box_faults import HEIGHT, PICTURES, WIDTH, YAML, coco, config, parts, voc, xml, yolo
from tests.data.mask_faults import image, write
from vit.config import NOBODY, BoxData
from vit.data import boxyaml
from vit.data.batches import Batches, once
from vit.data.boxcrop import jittered, mosaic, rows
from vit.data.boxes import BoxImages
from vit.data.boxforms import Boxes, turned, wrong
from vit.data.boxset import has_boxes, listing
from vit.data.boxvoc import BadXml, parse
from vit.data.coco import lines_of
from vit.data.decode import upright
from vit.data.sources import describe, labels, open_source, said, splits
from vit.errors import UserError


def own(example):
    """The boxes of an evaluated example in pixels of its own image, as the contract has it."""
    used = example["label"] != NOBODY
    shape = np.tile(example["image"].shape[:2], 2)
    return example["boxes"][used] * shape * np.tile(example["size"] / example["content"], 2)


def the_same(root, corners, form, **changes):
    """The first image has one box of each class; splits, sizes and names are right."""
    settings_ = config(root, **changes)
    found = listing(settings_)
    assert found.form == form
    assert not found.flaws
    assert [p.what for p in found.problems if p.fatal] == []
    source = BoxImages(settings_, "train")
    assert source.class_names == ["cat", "dog"]
    assert (len(source), len(BoxImages(settings_, "val"))) == (6, 3)
    example = source[0]
    assert example["image"].shape == (32, 48, 3)
    assert example["label"].tolist() == [0, 1]
    np.testing.assert_allclose(own(example), corners, atol=1e-3)
    np.testing.assert_array_equal(example["size"], [HEIGHT, WIDTH])
    return source


VOC_BOXES = [[4, 2, 20, 12], [1, 1, 9, 9]]  # y0 x0 y1 x1 of (3, 5) to (12, 20), which are pixels counted from 1
YOLO_BOXES = [[6, 12, 18, 20], [0, 3.2, 12, 9.6]]
COCO_BOXES = [[5.5, 4, 15.5, 12], [5.5, 5, 15.5, 13]]


# ---- VOC ----


def test_voc(tmp_path):
    the_same(write(tmp_path, voc()), VOC_BOXES, "VOC's XML, lists train.txt, val.txt, boxes from 1")


@pytest.mark.parametrize("place", ["VOCdevkit/VOC2007", "VOC2012"])
def test_voc_further_down(tmp_path, place):
    write(tmp_path, {f"{place}/{name}": content for name, content in voc().items()})
    the_same(tmp_path, VOC_BOXES, "VOC's XML, lists train.txt, val.txt, boxes from 1")


def test_voc_from_0(tmp_path):
    """Where any box of the set begins at 0, all are edges as they are."""
    source = BoxImages(config(write(tmp_path, voc(xml(("cat", 0, 5, 12, 20), ("dog", 2, 2, 9, 9))))), "train")
    assert source.listing.form.endswith("boxes from 0")
    np.testing.assert_allclose(own(source[0]), [[5, 0, 20, 12], [2, 2, 9, 9]], atol=1e-3)


def test_voc_beside_the_images(tmp_path):
    """As Roboflow exports it: splits are folders."""
    files = {}
    for split, n in parts():
        folder = {"train": "train", "val": "valid"}[split]
        files |= {f"{folder}/{n}.jpg": PICTURES[n], f"{folder}/{n}.xml": xml(("cat", 3, 5, 12, 20), ("dog", 2, 2, 9, 9))}
    the_same(write(tmp_path, files), VOC_BOXES, "VOC's XML, boxes from 1")
    write(tmp_path, {"train/alone.jpg": image(77)})
    found = listing(config(tmp_path))
    assert [p.what for p in found.problems] == ["1 images have no XML and are not used, as 'train/alone.jpg'"]


def test_voc_difficult_are_crowds_and_objects_none(tmp_path):
    dog = "<name>dog</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    first = xml(("cat", 3, 5, 12, 20), difficult=1, extra=f"<object>{dog}{part}</object>")
    source = BoxImages(config(write(tmp_path, {**voc(first), "Annotations/001.xml": xml()})), "train")
    assert source[0]["crowd"].tolist() == [True, False]
    np.testing.assert_allclose(own(source[0]), VOC_BOXES, atol=1e-3)
    assert source[1]["label"].tolist() == [NOBODY, NOBODY]
    assert source.kinds.tolist() == [1, *[0, 1] * 4]
    assert labels(source).tolist() == source.kinds.tolist()


def test_voc_without_a_size(tmp_path):
    write(tmp_path, voc(xml(("cat", 3, 5, 12, 20), ("dog", 2, 2, 9, 9), size=None)))
    the_same(tmp_path, VOC_BOXES, "VOC's XML, lists train.txt, val.txt, boxes from 1")


def test_voc_trainval_alone_and_unlisted(tmp_path):
    names = "".join(f"{n:03d}  1\n" for _, n in parts()[:8])
    files = {**voc(trainval=names), "ImageSets/Main/train.txt": None, "ImageSets/Main/val.txt": None}
    found = listing(config(write(tmp_path, {name: x for name, x in files.items() if x is not None})))
    assert len(found.names) == 8
    assert "1 XML files are in no list and are not used" in [p.what for p in found.problems]
    assert "split by content" in found.form


def test_voc_test_lists_without_annotations_are_left_out(tmp_path):
    found = listing(config(write(tmp_path, voc(test="900\n901\n"))))
    assert [p.what for p in found.problems] == ["the 2 images of test have no XML and are not used"]
    assert not found.flaws


def test_voc_names_of_ones_own_order(tmp_path):
    source = BoxImages(config(write(tmp_path, voc()), names=("bird", "dog", "cat")), "train")
    assert source.class_names == ["bird", "dog", "cat"]
    assert source[0]["label"].tolist() == [2, 1]


def test_voc_of_other_hands(tmp_path):
    """Endings in capitals, masks beside the images, and a slip of no area, which says nothing of where counting begins."""
    files = {}
    for split, n in parts():
        files |= {f"images/{split}/{n}.jpg": PICTURES[n], f"trimaps/{split}/{n}.png": image(n)}
        boxes = ("cat", 3, 5, 12, 20), ("dog", 2, 2, 9, 9), *([("dog", 0, 0, 0, 0)] if n == 1 else [])
        files[f"xmls/{split}/{n}.XML"] = xml(*boxes, filename="renamed.jpg")
    source = BoxImages(config(write(tmp_path, files), bad_boxes="drop"), "train")
    assert source.listing.form == "VOC's XML, boxes from 1"
    assert all(name.startswith("images") for name in source.listing.names)
    np.testing.assert_allclose(own(source[0]), VOC_BOXES, atol=1e-3)
    assert [p.what for p in source.listing.problems] == []


@pytest.mark.parametrize("name", ["Annotations/000.xml", "labels/train/000.txt"])
def test_links_that_lead_nowhere(tmp_path, name):
    root = write(tmp_path / "set", voc() if name.endswith("xml") else yolo())
    (root / name).unlink()
    (root / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="it is a link that leads nowhere") as told:
        BoxImages(config(root), "train")
    assert told.value.where == str(root / name)
    assert len(BoxImages(config(root, bad_boxes="drop"), "train")) >= 5


def test_xml_that_expands_is_refused():
    bomb = "<!DOCTYPE a [<!ENTITY b 'x'><!ENTITY c '&b;&b;'>]><annotation><filename>&c;</filename></annotation>"
    with pytest.raises(BadXml, match="defines entities"):
        parse(bomb.encode())


# ---- YOLO ----


@pytest.mark.parametrize(
    "yaml",
    [YAML,
     "names: ['cat', \"dog\"] # two\nnc: 2\ntrain: ../images/train\nval: /another/machine/images/val\ntest: images/test\n",
     "train: images/train\nval:\n  - images/val\nnames:\n- cat\n- dog\n", "names: {0: cat,\n  1: dog}\n",
     "---\n# a set\nnames:\n    0: cat  # tame\n    1: 'dog'\nroboflow:\n  license: x\n"],
)  # fmt: skip
def test_yolo(tmp_path, yaml):
    the_same(write(tmp_path, yolo(yaml=yaml)), YOLO_BOXES, "YOLO's TXT with data.yaml")


def test_yolo_from_windows_by_links(tmp_path):
    """Byte order marks, line ends, and folders of images that lie elsewhere."""
    text = b"\xef\xbb\xbf0 0.5 0.5 0.25 0.5\r\n1 0.2 0.25 0.2 0.5\r\n"
    files = {name: text if name.endswith(".txt") else x for name, x in yolo(yaml=None).items()} | {"classes.txt": "cat\ndog\n"}
    root = write(tmp_path / "set", files)
    the_same(root, YOLO_BOXES, "YOLO's TXT")
    (root / "images").rename(tmp_path / "elsewhere")
    (root / "images").symlink_to(tmp_path / "elsewhere")
    write(root, {"data.yaml": YAML})
    the_same(root, YOLO_BOXES, "YOLO's TXT with data.yaml")


def test_a_yaml_of_something_else(tmp_path):
    files = {f"{kind}/{n}.jpg": image(n) for n, kind in enumerate(("cat", "dog"))}
    others = {"params.yaml": "train:\n  lr: 1\n", "annotations/style.xml": "<style/>"}
    assert not has_boxes(str(write(tmp_path, {**files, **others})))


def test_yolo_as_roboflow_has_it(tmp_path):
    yaml = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['cat', 'dog']\n"
    files = yolo(yaml=yaml)
    for kind, split, folder in (("images", "train", "train"), ("labels", "train", "train"), ("images", "val", "valid"),
                                ("labels", "val", "valid")):  # fmt: skip
        files = {name.replace(f"{kind}/{split}", f"{folder}/{kind}"): x for name, x in files.items()}
    the_same(write(tmp_path, files), YOLO_BOXES, "YOLO's TXT with data.yaml")


def test_yolo_with_classes_txt(tmp_path):
    files = {**yolo(yaml=None), "labels/classes.txt": "cat\ndog\n"}
    the_same(write(tmp_path, files), YOLO_BOXES, "YOLO's TXT")


def test_yolo_beside_the_images_in_lists(tmp_path):
    files = {"obj.txt": "x", "classes.txt": "cat\ndog\n"}
    for split, n in parts():
        files |= {f"obj/{n}.jpg": PICTURES[n], f"obj/{n}.txt": "0 0.5 0.5 0.25 0.5\n1 0.2 0.25 0.2 0.5\n"}
        files[f"{split}.txt"] = files.get(f"{split}.txt", "") + f"data/obj/{n}.jpg\n"
    write(tmp_path, files)
    the_same(tmp_path, YOLO_BOXES, "YOLO's TXT, lists train.txt, val.txt")
    write(tmp_path, {"obj/alone.jpg": image(77), "train.txt": files["train.txt"] + "obj/alone.jpg\n"})
    assert [p.what for p in listing(config(tmp_path)).problems] == [
        "1 images have no labels and are not used, as 'obj/alone.jpg'"
    ]


def test_yolo_without_names_polygons_and_images_without_boxes(tmp_path):
    files = yolo("3.0 0.25 0.25 0.75 0.25 0.75 0.5 0.25 0.5\n", yaml=None) | {"labels/train/001.txt": ""}
    del files["labels/train/002.txt"]
    source = BoxImages(config(write(tmp_path, files)), "train")
    assert source.class_names == ["0", "1", "2", "3"]
    np.testing.assert_allclose(own(source[0]), [[6, 8, 12, 24]], atol=1e-3)
    assert [(source[i]["label"] != NOBODY).sum() for i in range(4)] == [1, 0, 0, 2]
    assert len(source) == 6
    assert any("have no box to train on: 2" in line for line in source.said)


@pytest.mark.parametrize(
    ("text", "value"),
    [("a: b # c", "b"), ('a: "b\\"\\u00e9"', 'b"é'), ("a: [x, 'y, z']", ["x", "y, z"]),
     ("a: {x: 1, 'y': z}", {"x": "1", "y": "z"}), ("a:", ""), ("a:\n- 1\n- ox", ["1", "ox"]),
     ("a:\n  0: 1\n  1: 'd''e'", {"0": "1", "1": "d'e"}),
     ("a: []", [])],
)  # fmt: skip
def test_yaml(tmp_path, text, value):
    others = "skeleton: [[0, 1]]\naug:\n  deep: [1, {x: y}]\n"  # which nobody asks for
    (tmp_path / "data.yaml").write_text(f"x: 1\n{text}\nz: 2\n{others}", encoding="utf-8-sig")
    found = boxyaml.read(tmp_path / "data.yaml")
    assert found["a"] == (value, 2)
    assert found["z"].content == "2"


# ---- COCO ----

COCO_FORM = "COCO boxes in annotations/instances_train.json, annotations/instances_val.json"


def test_coco(tmp_path):
    source = the_same(write(tmp_path, coco(iscrowd=1, area=12.5)), COCO_BOXES, COCO_FORM)
    assert source[0]["crowd"].tolist() == [True, False]
    assert source[0]["area"].tolist() == [12.5, 40]


def test_coco_of_one_file(tmp_path):
    files = coco()
    content = json.loads(files.pop("annotations/instances_train.json"))
    del files["annotations/instances_val.json"]
    content["images"] += [{"id": n, "file_name": f"{n}.jpg", "height": 24, "width": 32} for n in range(100, 160)]
    content["annotations"] += [
        {"id": 10 * n, "image_id": n, "category_id": 9, "bbox": [1, 1, 9, 9]} for n in range(100, 160) if n % 2
    ]
    files |= {f"more/{n}.jpg": image(n) for n in range(100, 160)}
    files["sub/annotations/mine.json"] = json.dumps(content)
    root = write(tmp_path, files)
    found = listing(config(root, annotations=str(root / "sub/annotations/mine.json")))
    assert found.form == "COCO boxes in sub/annotations/mine.json, split by content"
    assert len(found.names) == 66
    assert found.class_ids == [3, 9]
    assert {int(name[5:-4]): i for name, i in zip(found.names, found.image_ids, strict=True) if name.startswith("more")} == {
        n: n for n in range(103, 160)
    }
    assert all((found.splits == k).any() for k in range(3))
    write(root, {"sub/annotations/mine.json": ""})
    write(root, {"elsewhere/mine.json": json.dumps(content)})
    moved = listing(config(root, annotations=str(root / "elsewhere/mine.json")))
    assert moved.splits.tolist() == found.splits.tolist()
    assert describe(BoxImages(config("", annotations=str(root / "elsewhere/mine.json"), dir=str(root)), "train"))["boxes"]


def test_coco_of_roboflow(tmp_path):
    """A category that is only the others' name together is no class; images without annotations count."""
    categories = [{"id": 0, "name": "pets", "supercategory": "none"}]
    categories += [{"id": n, "name": name, "supercategory": "pets"} for n, name in ((3, "cat"), (9, "dog"))]
    files = coco({"categories": categories})
    content = json.loads(files["annotations/instances_val.json"])
    content["annotations"] = content["annotations"][:1]
    files["annotations/instances_val.json"] = json.dumps({**content, "categories": categories})
    root = write(tmp_path, files)
    the_same(root, COCO_BOXES, COCO_FORM)
    val = BoxImages(config(root), "val")
    assert [(val[i]["label"] != NOBODY).sum() for i in range(3)] == [1, 0, 0]
    assert val.room == 1


@pytest.mark.parametrize("indent", [None, 0, 3])
def test_lines_of_entries(indent):
    """Each begins where a JSON reader that starts there reads it."""
    entry = {"id": 1, "name": 'a "quoted" ]}, { [\n', "é": [[1, {}], None], "x": -1.5e-3}
    content = {
        "info": {"images": [7]},
        "images": [entry, {}, 3],
        "annotations": [],
        "z": "]",
        "categories": [[entry], "[", entry],
    }
    text = json.dumps(content, indent=indent)
    found, rows = lines_of(text), text.splitlines()
    assert found.keys() == {"images", "annotations", "categories"}
    for key, lines in found.items():
        for x, line in zip(content[key], lines, strict=True):
            if indent is None:
                assert line == 1
            else:
                assert json.JSONDecoder().raw_decode("\n".join(rows[line - 1 :]).lstrip())[0] == x
    assert lines_of("\n\n" + text) == {key: [line + 2 for line in lines] for key, lines in found.items()}


# ---- TFDS ----


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_a_prepared_set_of_tfds(tmp_path, kind):
    import tensorflow_datasets as tfds

    crowd = "is_crowd" if kind == "coco" else "is_difficult"
    with tfds.core.registered.skip_registration():

        class Pets(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                objects = {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
                objects |= {crowd: np.bool_} | ({"area": np.int64} if kind == "coco" else {})
                features = {"image": tfds.features.Image(), "objects": tfds.features.Sequence(objects)}
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {"train": self.examples(6), "validation": self.examples(3), "test": self.examples(2, none=True)}

            def examples(self, count, none=False):
                boxes = [tfds.features.BBox(6 / 24, 12 / 32, 18 / 24, 20 / 32), tfds.features.BBox(0.0, 0.1, 0.5, 0.3)]
                objects = [{"bbox": box, "label": k, crowd: k == 1} for k, box in enumerate(boxes)]
                objects = [{**o, "area": 33} if kind == "coco" else o for o in objects]
                yield from ((i, {"image": image(i), "objects": [] if none else objects}) for i in range(count))

            def _generate_examples(self):
                raise NotImplementedError

    Pets(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    source = the_same(tmp_path / "pets", YOLO_BOXES, "TFDS set pets 1.0.0 with objects")
    assert source[0]["crowd"].tolist() == [False, True]
    assert source[0]["area"].tolist() == [33, 33] if kind == "coco" else source[0]["area"][0] == 96
    assert [p.what for p in source.listing.problems] == [
        "the 2 images of test have no boxes and are not used",
        "1 of 2 classes have no box to train on: dog",
    ]


# ---- orientation, clipping ----


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_stored_pixels(orientation):
    rng = np.random.default_rng(orientation)
    pixels = np.zeros((20, 30, 1), np.uint8)
    y0, x0 = rng.integers(0, 10, 2)
    pixels[y0 : y0 + 5, x0 : x0 + 9] = 1
    upright_ = upright(pixels, orientation)[..., 0]
    (box,) = turned(np.array([[y0 / 20, x0 / 30, (y0 + 5) / 20, (x0 + 9) / 30]]), orientation) * np.tile(upright_.shape, 2)
    rows_, columns = np.flatnonzero(upright_.any(1)), np.flatnonzero(upright_.any(0))
    np.testing.assert_allclose(box, [rows_[0], columns[0], rows_[-1] + 1, columns[-1] + 1], atol=1e-6)


@pytest.mark.parametrize("stored", [True, False])
def test_exif(tmp_path, stored):
    """Sizes in the annotation say whether its boxes are of the image as it is stored, or upright."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[4:20, 2:12] = 255
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turn clockwise: the stored left is above
    Image.fromarray(pixels).save(out, "jpeg", quality=95, exif=exif)
    box = (3, 5, 12, 20) if stored else (HEIGHT - 20 + 1, 3, HEIGHT - 4, 12)
    text = xml(("cat", *box), size=(WIDTH, HEIGHT) if stored else (HEIGHT, WIDTH))
    source = BoxImages(config(write(tmp_path, {**voc(text), "JPEGImages/000.jpg": out.getvalue()})), "train")
    example = source[0]
    assert example["size"].tolist() == [WIDTH, HEIGHT]
    np.testing.assert_allclose(own(example)[:1], [[2, HEIGHT - 20, 12, HEIGHT - 4]], atol=1e-3)


def test_boxes_that_reach_out_are_clipped_and_counted(tmp_path):
    source = BoxImages(config(write(tmp_path, coco(bbox=[-4, 5.5, 12, 100]))), "train")
    np.testing.assert_allclose(own(source[0])[0], [5.5, 0, 24, 8], atol=1e-3)
    assert source.said[1:] == ["1 boxes reach out of their images and are clipped"]


@pytest.mark.parametrize(
    ("corners", "what"),
    [((0, 0, 1, 1), ""), ((-1, -1, 2, 2), ""), ((0.5, 0.5, 0.5, 0.7), "it has no area"), ((0.6, 0, 0.5, 1), "its end lies"),
     ((1, 0, 2, 1), "it lies outside"), ((-2, 0, 0, 1), "it lies outside"), ((0, 0, float("nan"), 1), "not finite")],
)  # fmt: skip
def test_which_boxes_cannot_be(corners, what):
    assert what in wrong(corners)
    assert bool(what) == bool(wrong(corners))


# ---- views and batches ----


@pytest.mark.parametrize("view", ["whole", "padded"])
def test_own_pixels_come_back(tmp_path, view):
    source = BoxImages(config(write(tmp_path, voc()), view=view), "train")
    example = source[0]
    assert example["content"].tolist() == ([32, 48] if view == "whole" else [32, 43])
    np.testing.assert_allclose(own(example), VOC_BOXES, atol=1e-3)
    assert example["area"].tolist() == [160, 64]
    assert (example["boxes"].dtype, example["label"].dtype, example["crowd"].dtype) == (np.float32, np.int32, bool)


def test_what_a_source_says(tmp_path):
    settings_ = config(write(tmp_path, yolo("0 0.5 0.5 0.25 0\n")), bad_boxes="drop")
    source = open_source(settings_, "train")
    assert splits(settings_) == ("train", "val")
    assert describe(source) | {"dataset": ""} == {
        "dataset": "", "class_names": ["cat", "dog"], "image_size": [32, 48], "channels": 3, "view": "padded", "boxes": True,
    }  # fmt: skip
    found, dropped = said(source)
    assert found == (
        "found YOLO's TXT with data.yaml: 2 classes, 16 boxes, 0 of them crowds or difficult; images: 6 train, 3 val, 0 test"
    )
    assert dropped.startswith("1 faults of annotations are dropped, the first: this box can't be used: it has no area")
    with pytest.raises(UserError, match=r"--data\.bad-boxes drop"):
        open_source(replace(settings_, bad_boxes="error"), "train")


@pytest.mark.parametrize("stream", [True, False])
def test_batches(tmp_path, stream):
    files = {**yolo(), "images/train/900.jpg": b"no image"} | {f"images/train/{n}.jpg": image(n) for n in range(901, 1050)}
    settings_ = config(write(tmp_path, files), bad_images="skip", mosaic=0.5, most=5, stream=stream)
    batches = Batches(BoxImages(settings_, "train"), 0, 4, stream=True)
    some = [batch for batch, _ in zip(batches.starting_at(0), range(3), strict=False)]
    for batch in some:
        assert batch["image"].shape == (4, 32, 48, 3)
        assert batch["boxes"].shape == (4, 5, 4)
        assert set(batch) == {"image", "boxes", "label", "crowd", "id", "mask"}
        used = batch["label"] != NOBODY
        assert (np.diff(used.astype(int), axis=1) <= 0).all()  # rows in use come first
        assert (batch["boxes"][~used] == 0).all()
        assert (batch["boxes"][used][:, 2:] > batch["boxes"][used][:, :2]).all()
        assert ((batch["boxes"] >= 0) & (batch["boxes"] <= 1)).all()
    again = next(batches.starting_at(2))
    for name, values in again.items():
        np.testing.assert_array_equal(values, some[2][name])
    whole = list(once(BoxImages(settings_, "train"), 50))
    assert sum(batch["mask"].sum() for batch in whole) == 155
    assert whole[0]["area"].shape == (50, 2)


def test_of_too_many_boxes_the_largest_stay():
    sides = np.array([3, 9, 1, 7, 5]) / 10
    corners = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    found = rows(Boxes(corners, np.arange(5), np.zeros(5, bool), np.arange(5.0)), 3)
    assert found["label"].tolist() == [1, 3, 4]
    assert found["area"].tolist() == [1, 3, 4]


# ---- boxes move with pixels ----


def scene(height, width, corners):
    """An image that is black but for a rectangle of a colour of its own for each box, whose channels tell it."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for k, (y0, x0, y1, x1) in enumerate(corners):
        pixels[y0:y1, x0:x1] = 0
        pixels[y0:y1, x0:x1, k] = 255
    boxes = np.array(corners, float).reshape(-1, 4) / (height, width, height, width)
    return pixels, Boxes(boxes, np.arange(len(corners)), np.zeros(len(corners), bool), np.full(len(corners), np.nan))


def surrounds(view, scale=1.0):
    """Every box that came out surrounds what is drawn of its colour, as nearly as pixels allow; what is seen well has a box."""
    for k in range(3):
        seen = view.image[..., k] > 127
        those = view.corners[view.kinds == k]
        if not len(those):
            continue
        ((y0, x0, y1, x1),) = those
        assert seen.any() or min(y1 - y0, x1 - x0) < 2
        if seen.any():
            lines, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
            edges = np.array([lines[0], columns[0], lines[-1] + 1, columns[-1] + 1])
            assert np.abs(edges - (y0, x0, y1, x1)).max() <= 1 + scale


@st.composite
def scenes(draw):
    height, width = draw(st.integers(40, 120)), draw(st.integers(40, 120))
    third, corners = width // 3, []
    for k in range(3):  # side by side, so that none covers another
        y0, x0 = draw(st.integers(0, height - 12)), k * third + draw(st.integers(0, third - 12))
        corners.append((y0, x0, draw(st.integers(y0 + 10, height)), draw(st.integers(x0 + 10, (k + 1) * third))))
    return scene(height, width, corners)


@settings(deadline=None, max_examples=150)
@given(scenes(), st.integers(0, 10**6), st.sampled_from(["whole", "padded"]))
def test_a_crop_moves_boxes_with_pixels(pair, seed, view):
    config_ = BoxData(size=(64, 80), view=view, mean=(0.0, 0.0, 0.0), scale=(0.5, 2.0))
    found = jittered(pair, config_, random.Random(seed))
    assert found.image.shape == (64, 80, 3)
    assert (found.corners >= 0).all()
    assert (found.corners <= (64, 80, 64, 80)).all()
    surrounds(found)


@settings(deadline=None, max_examples=60)
@given(scenes(), st.integers(0, 10**6))
def test_whatever_is_seen_well_keeps_its_box(pair, seed):
    """With all of a box's area demanded, a box that is there is whole; with none, each that shows is there."""
    base = BoxData(size=(64, 80), mean=(0.0, 0.0, 0.0))
    all_ = jittered(pair, replace(base, visible=0.0), random.Random(seed))
    whole = jittered(pair, replace(base, visible=1.0), random.Random(seed))
    np.testing.assert_array_equal(all_.image, whole.image)
    assert set(whole.kinds) <= set(all_.kinds)
    for k in range(3):
        seen = all_.image[..., k] > 127
        assert k in all_.kinds or seen.any(1).sum() < 3 or seen.any(0).sum() < 3
    crowd = pair[1]._replace(crowd=np.ones(3, bool))
    assert set(jittered((pair[0], crowd), replace(base, visible=1.0), random.Random(seed)).kinds) == set(all_.kinds)


@settings(deadline=None, max_examples=60)
@given(scenes(), st.integers(0, 10**6))
def test_a_mosaic_moves_boxes_with_pixels(pair, seed):
    config_ = BoxData(size=(96, 128), mean=(0.0, 0.0, 0.0), scale=(0.5, 1.0))
    blank = np.zeros((50, 50, 3), np.uint8), Boxes(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0))
    where = seed % 4
    order = iter([blank] * where + [pair] + [blank] * (3 - where))
    found = mosaic(lambda: next(order), config_, random.Random(seed))
    assert found.image.shape == (96, 128, 3)
    surrounds(found)


def test_a_mosaic_has_four_and_objects_as_large_as_elsewhere():
    pair = scene(60, 80, [(10, 10, 30, 30)])
    config_ = BoxData(size=(120, 160), mean=(0.0, 0.0, 0.0), scale=(0.5, 1.0), visible=0.9)
    sides = {"one": [], "four": []}
    count = []
    for seed in range(200):
        one, four = (jittered(pair, config_, random.Random(seed)), mosaic(lambda: pair, config_, random.Random(seed)))
        count.append(len(four.kinds))
        for name, view in (("one", one), ("four", four)):
            sides[name] += (view.corners[:, 2] - view.corners[:, 0]).tolist()
    assert max(count) == 4
    assert abs(np.median(sides["one"]) - np.median(sides["four"])) < 5
