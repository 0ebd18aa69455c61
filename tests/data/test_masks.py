"""Sets with masks: every form that is found, what ids become, and that image and mask move together."""

import contextlib
import io
import itertools
import json
import random
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.mask_faults import coco, config, ids, image, panoptic, png, whole, write
from tests.data.test_check import tree
from vit.config import MaskData
from vit.data.batches import Batches
from vit.data.decode import BadImage
from vit.data.legend import read
from vit.data.maskcrop import crop_image, crop_map, random_spans, spans, viewed
from vit.data.maskfiles import Table, mask_size, read_mask
from vit.data.maskforms import sorted_out
from vit.data.masks import MaskImages
from vit.data.maskset import listing
from vit.data.segments import counts, covered
from vit.errors import UserError


def members(root, **settings):
    """Stem of image → stem of mask, and the sorted images of each split."""
    found = listing(config(root, **settings))
    assert not [p for p in found.problems if p.fatal], found.problems
    return found, {split: sorted(found.names[i] for i in np.flatnonzero(found.splits == k)) for k, split in enumerate(
        ("train", "val", "test"))}  # fmt: skip


# ---- folders ----

# Where the images and masks of a split lie: {} is its name, and n the number.
LAYOUTS = {
    "images/train": ("images/{}/{n}.jpg", "masks/{}/{n}.png"),
    "train/images": ("{}/images/{n}.jpg", "{}/labels/{n}.png"),
    "ADE20K": ("images/{}/{n}.jpg", "annotations/{}/{n}.png"),
    "CamVid": ("{}/{n}.png", "{}annot/{n}.png"),
    "kaggle": ("{}/{n}.jpg", "{}_masks/{n}_mask.png"),
    "labels": ("{}/{n}.jpg", "{}_labels/{n}_L.png"),
    "both named": ("{}_images/{n}.jpg", "{}_mask/{n}.png"),
    "role first": ("images_{}/{n}.jpg", "masks_{}/{n}.png"),
    "years": ("{}2017/{n}.jpg", "annotations/{}2017/{n}.png"),
    "Cityscapes": ("leftImg8bit/{}/ulm/ulm_{n}_leftImg8bit.png", "gtFine/{}/ulm/ulm_{n}_gtFine_labelIds.png"),
    "Cityscapes, unpacked": (
        "leftImg8bit_trainvaltest/leftImg8bit/{}/ulm/ulm_{n}_leftImg8bit.png",
        "gtFine_trainvaltest/gtFine/{}/ulm/ulm_{n}_gtFine_labelIds.png",
    ),
    "masks not split": ("images/{}/{n}.jpg", "masks/{n}.png"),
    "images not split": ("img/{n}.jpg", "annot/{}/{n}.png"),
    "deep": ("data/{}/a/rgb/{n}.jpg", "data/{}/a/gt/{n}.png"),
    "DeepGlobe": ("{}/{n}_sat.jpg", "{}/{n}_mask.png"),
    "beginnings": ("imgs/{}/image_{n}.jpg", "masks/{}/mask_{n}.png"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_folders(tmp_path, name):
    where, masks = LAYOUTS[name]
    splits = ("training", "validation") if name == "ADE20K" else ("train", "val")
    files = {}
    for split, numbers in zip(splits, (range(100, 112), range(200, 205)), strict=True):
        for n in numbers:
            files |= {where.format(split, n=n): image(n), masks.format(split, n=n): png(ids(n))}
    found, parts = members(write(tmp_path, files))
    assert len(found.pairs) == 17
    for pair in found.pairs:
        number = next(n for n in range(100, 300) if str(n) in pair.image)
        assert str(number) in pair.mask
    assert (len(parts["train"]), len(parts["val"]), len(parts["test"])) == (12, 5, 0)
    assert not found.problems


def test_nobody_split(tmp_path):
    files = {f"images/{n:03d}.jpg": image(n) for n in range(60)} | {f"masks/{n:03d}.png": png(ids(n)) for n in range(60)}
    found, parts = members(write(tmp_path, files))
    assert found.form == "images with masks in masks, split by content"
    assert [len(part) > 0 for part in parts.values()] == [True] * 3
    write(tmp_path, {"images/x.jpg": image(7), "masks/x.png": png(ids(7))})
    _, again = members(tmp_path)
    for split, part in again.items():
        assert set(parts[split]) <= set(part)  # none has moved
        assert ("images/x.jpg" in part) == ("images/007.jpg" in part)  # copies stay together


def test_a_test_split_without_masks_is_left_out(tmp_path):
    found, parts = members(write(tmp_path, {**whole(), "images/test/900.jpg": image(), "images/test/901.jpg": image()}))
    assert parts["test"] == []
    assert [p.what for p in found.problems] == ["the 2 images of test have no masks and are not used"]


def test_cityscapes_has_several_masks_of_an_image(tmp_path):
    files = {}
    for split in ("train", "val"):
        for n in range(3):
            files[f"leftImg8bit/{split}/ulm/ulm_{n}_leftImg8bit.png"] = image(n, kind="png")
            for kind in ("labelIds", "labelTrainIds", "color", "instanceIds"):
                files[f"gtFine/{split}/ulm/ulm_{n}_gtFine_{kind}.png"] = png(ids(n))
            files[f"gtFine/{split}/ulm/ulm_{n}_gtFine_polygons.json"] = "{}"
    found, _ = members(write(tmp_path, files))
    assert {pair.mask[-17:] for pair in found.pairs} == {"labelTrainIds.png"}
    assert not found.problems


@pytest.mark.parametrize(
    ("path", "role", "split"),
    [
        ("VOC2012/SegmentationObject/a.png", "unused", ""), ("VOC2012/SegmentationClass/a.png", "mask", ""),
        ("train/cat/a.jpg", "", "train"), ("a/b/c.png", "", ""), ("trainings/a.png", "", ""),
        ("Masks/Train/a.png", "mask", "train"),
        ("annotations/trimaps/a.png", "mask", ""), ("validation/images/a.png", "image", "val"),
    ],
)  # fmt: skip
def test_what_a_path_says(path, role, split):
    assert sorted_out(path)[1:3] == (role, split)


# ---- lists ----


def stems(numbers, line="{n:03d}"):
    return "".join(line.format(n=n) + "\n" for n in numbers)


LISTS = {
    "VOC": ("ImageSets/Segmentation/", "{n:03d}"),
    "VOC in its kit": ("VOCdevkit/VOC2012/ImageSets/Segmentation/", "{n:03d}"),
    "stems": ("", "{n:03d}"),
    "names": ("", "{n:03d}.jpg"),
    "paths": ("", "JPEGImages/{n:03d}.jpg SegmentationClass/{n:03d}.png"),
    "commas": ("", "JPEGImages/{n:03d}.jpg, SegmentationClass/{n:03d}.png"),
    "from the list": ("ImageSets/Segmentation/", "../../JPEGImages/{n:03d}.jpg ../../SegmentationClass/{n:03d}.png"),
    "another machine": ("", "/SegNet/my set/JPEGImages/{n:03d}.jpg /SegNet/my set/SegmentationClass/{n:03d}.png"),
    "other endings": ("", "/SegNet/JPEGImages/{n:03d}.png /SegNet/SegmentationClass/{n:03d}.png"),
    "Windows": ("", "JPEGImages\\{n:03d}.jpg\tSegmentationClass\\{n:03d}.png"),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists(tmp_path, name):
    where, line = LISTS[name]
    base = where.partition("ImageSets")[0]
    files = {f"{base}JPEGImages/{n:03d}.jpg": image(n) for n in range(20)}
    files |= {f"{base}SegmentationClass/{n:03d}.png": png(ids(n), "P") for n in range(18)}
    files |= {f"{base}SegmentationObject/{n:03d}.png": png(ids(n), "P") for n in range(18)}
    files |= {f"{where}{split}.txt": stems(numbers, line) for split, numbers in
              {"train": range(10), "val": range(10, 16), "trainval": range(16)}.items()}  # fmt: skip
    if "VOC" in name:
        files[f"{where}test.txt"] = stems(range(18, 20))
    found, parts = members(write(tmp_path, files))
    assert parts["train"] == [f"JPEGImages/{n:03d}.jpg" for n in range(10)]
    assert parts["val"] == [f"JPEGImages/{n:03d}.jpg" for n in range(10, 16)]
    assert [pair.mask for pair in found.pairs] == [f"SegmentationClass/{n:03d}.png" for n in range(16)]
    assert [p.what for p in found.problems] == ["the 2 images of test have no masks and are not used"] * ("VOC" in name)


def test_a_list_of_val_alone_and_names_with_blanks(tmp_path):
    files = {f"my images/{n} a.jpg": image(n) for n in range(9)} | {f"my masks/{n} a.png": png(ids(n)) for n in range(9)}
    lines = {f"{s}.txt": "".join(f"my images/{n} a.jpg my masks/{n} a.png\n" for n in r) for s, r in
             (("train", range(6)), ("val", range(6, 9)))}  # fmt: skip
    _, parts = members(write(tmp_path / "a", {**files, **lines}))
    assert len(parts["train"]), len(parts["val"]) == (6, 3)
    files = {f"images/{n}.png": image(n, kind="png") for n in range(9)} | {f"labels/{n}_P.png": b"" for n in ()}
    files |= {f"labels/{n}_L.png": png(ids(n)) for n in range(9)} | {"valid.txt": "3.png\n4.png\n"}
    _, parts = members(write(tmp_path / "b", files))
    assert parts["val"] == ["images/3.png", "images/4.png"]
    assert len(parts["train"]) == 7


# ---- ids and classes ----

KINDS = {
    "grey": lambda m: png(m),
    "palette": lambda m: png(m, "P"),
    "16 bits": lambda m: png(m.astype(np.uint16)),
    "thrice": lambda m: png(np.repeat(m[..., None], 3, 2)),
    "with alpha": lambda m: png(np.stack([m, m, m, 0 * m + 9], -1)),
    "grey with alpha": lambda m: png(np.stack([m, 0 * m + 9], -1)),
}


def chunked(pixels, bits, colour, palette=b"", rows=None):
    """A PNG of few bits a pixel by hand."""
    height, width = pixels.shape
    packed = np.packbits(np.unpackbits(pixels[..., None], axis=-1)[..., 8 - bits :].reshape(height, -1), axis=1)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed[:rows]))
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", head), *([(b"PLTE", palette)] if palette else []), (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks
    )


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_masks(tmp_path, name):
    mask = ids(3, K=7)
    root = write(tmp_path, {n: KINDS[name](ids(int(n[-7:-4]), K=7)) if "masks" in n else c for n, c in whole().items()})
    source = MaskImages(config(root), "train")
    assert source.class_names == list("0123456")
    np.testing.assert_array_equal(source[3]["label"], mask)


def test_sparse_ids(tmp_path):
    files = {n: png(300 * ids(int(n[-7:-4])).astype(np.uint16)) if "masks" in n else c for n, c in whole().items()}
    source = MaskImages(config(write(tmp_path, files)), "train")
    assert source.class_names == ["0", "300", "600"]
    np.testing.assert_array_equal(source[0]["label"], ids(0))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_ids(bits):
    pixels = np.random.default_rng(0).integers(0, 2**bits, (5, 11)).astype(np.uint8)
    np.testing.assert_array_equal(read_mask(chunked(pixels, bits, 0)), pixels)
    palette = bytes(np.random.default_rng(0).integers(0, 256, 3 * 2**bits).astype(np.uint8))
    np.testing.assert_array_equal(read_mask(chunked(pixels, bits, 3, palette)), pixels)


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_missing_rows_are_seen_and_rows_of_zeros_are_none(rows):
    pixels = np.zeros((5, 11), np.uint8)
    np.testing.assert_array_equal(read_mask(chunked(pixels, 8, 0)), pixels)
    with pytest.raises(BadImage):
        read_mask(chunked(pixels, 8, 0, rows=rows))


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_mask_that_is_cut_or_changed_is_refused(data):
    mask = ids(1, K=9)
    good = png(mask)
    if data.draw(st.booleans()):
        bad = good[: data.draw(st.integers(0, len(good) - 1))]
    else:
        at = data.draw(st.integers(0, len(good) - 13))  # not the end mark
        bad = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    with pytest.raises(BadImage):
        read_mask(bad)
    assert mask_size(good) == mask.shape


def test_a_bomb_of_a_mask_is_refused():
    head = chunked(np.zeros((1, 1), np.uint8), 8, 0)
    huge = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    bomb = head[:16] + huge + struct.pack(">I", zlib.crc32(b"IHDR" + huge)) + head[33:]
    for ask in (mask_size, read_mask):
        with pytest.raises(BadImage, match="announces 60000 x 60000"):
            ask(bomb)


@pytest.mark.parametrize("bits", [np.uint8, np.uint16])
@settings(deadline=None, max_examples=50)
@given(st.sets(st.integers(0, 255), max_size=20), st.integers(2, 40))
def test_ids_become_classes_in_their_order(bits, void, count):
    names = {i: str(i) for i in range(count)}
    table = Table(names, void | {255}, "")
    kept = [i for i in range(count) if i not in void]
    assert table.class_names == [str(i) for i in kept]
    known = np.array(sorted({*kept, *void, 255}), bits)[None]
    expected = [kept.index(i) if i in kept else 255 for i in known[0]]
    np.testing.assert_array_equal(table.of(known)[0], expected)
    for other in set(range(256)) - set(known[0].tolist()):
        if kept:
            with pytest.raises(BadImage, match=f"the mask has the id {other} at x 0, y 0"):
                table.of(np.array([[other]], bits))


def test_void_and_names(tmp_path):
    root = write(tmp_path, {n: png(np.where(ids(int(n[-7:-4])) == 2, 255, ids(int(n[-7:-4]), K=5))) if "masks" in n else c
                            for n, c in whole().items()})  # fmt: skip
    source = MaskImages(config(root, void=(1,)), "train")
    assert source.class_names == ["0", "2", "3", "4"]
    raw = np.where(ids(0) == 2, 255, ids(0, K=5))
    np.testing.assert_array_equal(source[0]["label"], np.array([0, 255, 1, 2, 3] + [0] * 250 + [255])[raw])
    assert source.listing.table.void == {1}
    write(root, {"classes.txt": "\ufeffsky\r\nvoid\r\ntree\r\ncar\r\nbus\r\n"})
    assert MaskImages(config(root), "train").class_names == ["sky", "tree", "car", "bus"]
    assert MaskImages(config(root, void=(0, 255)), "train").class_names == ["void", "tree", "car", "bus"]
    assert MaskImages(config(root, names=tuple("abcde")), "train").class_names == list("abcde")


@pytest.mark.parametrize("names", [{}, {"classes.txt": "ground\nroad\n"}, {"palette.txt": "0 0 0 ground\n255 255 255 road"}])
def test_black_and_white(tmp_path, names):
    files = {n: png(255 * ids(int(n[-7:-4]), K=2)) if "masks" in n else c for n, c in whole().items()}
    source = MaskImages(config(write(tmp_path, {**files, **names})), "train")
    assert source.class_names == (["ground", "road"] if names else ["0", "255"])
    np.testing.assert_array_equal(source[0]["label"], ids(0, K=2))
    one = {n: png(ids(int(n[-7:-4]), K=2), "1") if "masks" in n else c for n, c in files.items()}
    np.testing.assert_array_equal(MaskImages(config(write(tmp_path / "one", one)), "train")[0]["label"], ids(0, K=2))


PALETTES = {
    "palette.txt": "0 0 0 ground\n200 10 10 the house\n0 255 0 tree\n",
    "masks/colors.txt": "0,0,0,ground\n200,10,10,the house\n0,255,0,tree",
    "label_colors.txt": "0 0 0\t\tground\n200 10 10\tthe house\n\n0 255 0\ttree\n",
    "class_dict.csv": "name,r,g,b\nground,0,0,0\nthe house, 200, 10, 10\ntree,0,255,0\n",
    "classes.csv": "id;class;red;green;blue\n0;ground;0;0;0\n1;the house;200;10;10\n2;tree;0;255;0\n",
    "masks/train/classes.txt": "ground 0 0 0\nthe house 200 10 10\ntree 0 255 0\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nground:0,0,0::\nthe house:200,10,10::\ntree:0,255,0::\n",
}


@pytest.mark.parametrize("name", PALETTES)
def test_masks_of_colours(tmp_path, name):
    colours = np.array([[0, 0, 0], [200, 10, 10], [0, 255, 0]], np.uint8)
    files = {n: png(colours[ids(int(n[-7:-4]))]) if "masks" in n else c for n, c in whole().items()}
    root = write(tmp_path, {**files, name: PALETTES[name]})
    source = MaskImages(config(root, stream=False), "train")
    assert source.class_names == ["ground", "the house", "tree"]
    for i in range(len(source)):
        np.testing.assert_array_equal(source[i]["label"], ids(i))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60))
def test_any_file_of_names_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("x") / "classes.txt"
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        assert read(path).names


def test_classes_in_no_training_mask_are_told(tmp_path):
    files = {n: png(ids(int(n[-7:-4])) * 2) if "masks" in n else c for n, c in whole().items()}
    said = MaskImages(config(write(tmp_path, files)), "train").said
    assert said[0].startswith("found images with masks in masks: 5 classes, no void; images: 6 train, 3 val, 0 test")
    assert "2 of 5 classes are in no training mask: 1, 3" in said[1]


# ---- COCO ----


def test_instances(tmp_path):
    source = MaskImages(config(write(tmp_path, coco())), "train")
    assert source.class_names == ["background", "cat", "dog"]
    assert source.things == [False, True, True]
    example = MaskImages(config(tmp_path), SPLIT[0])[0]
    assert example["instance"].dtype == np.uint16
    record = source.listing
    label, instance = record.mask(record.names.index("images/0.jpg"))
    assert label[3, 7] == 1
    assert instance[3, 7] == 1
    assert label[20, 20] == instance[20, 20] == 0


SPLIT = ("train", "val", "test")


def test_what_covers_what(tmp_path):
    square = lambda a, b: [[a, a, b, a, b, b, a, b]]  # noqa: E731
    those = [
        {"id": 1, "image_id": 0, "category_id": 3, "segmentation": square(2, 6)},  # the smallest: on top
        {"id": 2, "image_id": 0, "category_id": 5, "segmentation": square(0, 16)},
        {"id": 3, "image_id": 0, "category_id": 3, "segmentation": square(0, 16)},  # as large, later
        {"id": 4, "image_id": 0, "category_id": 5, "iscrowd": 1,
         "segmentation": {"size": [24, 32], "counts": [0, 24 * 20, 24 * 12]}},  # 20 columns of crowd, below all
    ]  # fmt: skip
    found = listing(config(write(tmp_path, coco({"annotations": those}))))
    ids_, objects = found.ids(found.names.index("images/0.jpg"))
    assert (ids_[3, 3], objects[3, 3]) == (3, 1)
    assert (ids_[10, 10], objects[10, 10]) == (3, 3)
    assert (ids_[20, 18], objects[20, 18]) == (65535, 0)
    assert (ids_[20, 25], objects[20, 25]) == (0, 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
def test_run_lengths_are_those_of_pycocotools(seed, height, width):
    from pycocotools import mask as tools

    rng = np.random.default_rng(seed)
    where = rng.random((height, width)) < rng.random()
    text = tools.encode(np.asfortranarray(where.astype(np.uint8)))["counts"].decode()
    np.testing.assert_array_equal(covered(counts(text, (height, width)), (height, width)), where)
    flat = where.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    runs = np.diff([0, *edges, len(flat)]).tolist()
    np.testing.assert_array_equal(covered(counts(runs, (height, width)), (height, width)), where)


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=30))
def test_any_text_of_run_lengths_is_read_or_refused(text):
    with contextlib.suppress(BadImage):
        assert counts(text, (4, 5)).sum() == 20


def test_coco_in_its_own_folders(tmp_path):
    files = {}
    for split, start in (("train", 0), ("val", 100)):
        content = json.loads(coco()["instances.json"])
        for entry in content["images"]:
            files[f"{split}2017/{entry['id']:012d}.jpg"] = image(entry["id"] + start)
            entry["file_name"] = f"{entry['id']:012d}.jpg"  # the same names in both
        files[f"annotations/instances_{split}2017.json"] = json.dumps(content)
        files[f"annotations/captions_{split}2017.json"] = json.dumps({**content, "annotations": [{"caption": "a cat"}]})
    found, parts = members(write(tmp_path, files))
    assert found.form == "COCO instances in annotations/instances_train2017.json, annotations/instances_val2017.json"
    assert parts["val"][0] == "val2017/000000000000.jpg"
    assert (len(parts["train"]), len(parts["val"])) == (20, 20)


def test_panoptic_in_cocos_own_folders(tmp_path):
    files = {}
    for split, start in (("train", 0), ("val", 100)):
        made = panoptic()
        for name, content in made.items():
            where = {"images": f"{split}2017", "panoptic": f"annotations/panoptic_{split}2017"}.get(name.split("/")[0])
            if where:
                kind = image(int(name.split("/")[1][:-4]) + start) if "images" in name else content
                files[f"{where}/{name.split('/')[1]}"] = kind
        files[f"annotations/panoptic_{split}2017.json"] = made["panoptic.json"]
        files[f"annotations/instances_{split}2017.json"] = coco()["instances.json"]
        files[f"annotations/stuff_{split}2017.json"] = coco()["instances.json"]
    source = MaskImages(config(write(tmp_path, files)), "val")
    assert source.listing.form == "COCO panoptic in annotations/panoptic_train2017.json, annotations/panoptic_val2017.json"
    assert len(source) == 20
    example = source[3]
    assert (example["label"][2, 2], example["label"][20, 2], example["label"][20, 20]) == (0, 1, 255)
    assert source.listing.names[example["id"]] == "val2017/11.jpg"
    for path in tmp_path.glob("annotations/panoptic_*.json"):
        path.unlink()
    assert listing(config(tmp_path)).form.startswith("COCO instances in annotations/instances_train2017.json")


def test_roboflow_counts_from_zero(tmp_path):
    files = {}
    for split in ("train", "valid"):
        content = json.loads(coco()["instances.json"])
        content["categories"] = [{"id": 0, "name": "things"}, {"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}]
        files |= {f"{split}/{i}.jpg": image(i) for i in range(20)} | {f"{split}/_annotations.coco.json": json.dumps(content)}
    source = MaskImages(config(write(tmp_path, files)), "train")
    assert source.class_names == ["background", "things", "cat", "dog"]
    assert set(np.unique(source[0]["label"])) == {0, 2}


@pytest.mark.parametrize("crowd", [0, 1])
def test_panoptic(tmp_path, crowd):
    infos = [{"id": 1, "category_id": 3}, {"id": 258, "category_id": 5, "iscrowd": crowd}]
    found = MaskImages(config(write(tmp_path, panoptic(infos))), "train")
    assert found.class_names == ["sky", "dog"]
    assert found.things == [False, True]
    label, instance = found.listing.mask(found.listing.names.index("images/0.jpg"))
    assert (label[2, 2], instance[2, 2]) == (0, 0)  # stuff
    assert (label[20, 2], instance[20, 2]) == ((255, 0) if crowd else (1, 2))
    assert (label[20, 20], instance[20, 20]) == (255, 0)


# ---- TFDS ----


@pytest.mark.parametrize("feature", ["segmentation_mask", "my_mask"])
def test_a_prepared_set_of_tfds(tmp_path, feature):
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():

        class Pets(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                kinds = {"image": tfds.features.Image(), feature: tfds.features.Image(shape=(None, None, 1))}
                kinds |= {"label": tfds.features.ClassLabel(names=["b", "a"])}
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(kinds))

            def _split_generators(self, dl_manager):
                return {"train": self.examples(40), "test": self.examples(6)}

            def examples(self, count):
                yield from ((i, {"image": image(i), feature: png(ids(i)), "label": 0}) for i in range(count))

            def _generate_examples(self):
                raise NotImplementedError

    Pets(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    for path in (tmp_path, tmp_path / "pets", tmp_path / "pets" / "1.0.0"):
        source = MaskImages(config(path), "test")
        assert source.listing.form == f"TFDS set pets 1.0.0 with {feature}, val taken from train by content"
        assert source.class_names == ["0", "1", "2"]
        assert {example["label"].tobytes() for example in source} == {ids(i).tobytes() for i in range(6)}


# ---- image and mask together ----


def coordinates(height, width):
    """An image whose red grows with x and green with y, from 0 to 255 over the image; a mask of 8 by 8 cells."""
    y, x = (np.arange(n) + 0.5 for n in (height, width))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.round(255 * x / width)[None], np.round(255 * y / height)[:, None]
    cells = (y * 8 // height)[:, None] * 8 + (x * 8 // width)[None]
    return pixels, cells.astype(np.uint8)


@pytest.mark.parametrize("view", ["whole", "padded", "sliding"])
@pytest.mark.parametrize("shape", [(64, 96), (97, 41), (300, 411), (1000, 700)])
def test_a_crop_of_coordinates_is_a_crop_of_their_mask(view, shape):
    pixels, cells = coordinates(*shape)
    settings_ = MaskData(size=(48, 64), view=view, scale=(0.5, 2.0), mean=(0.0, 0.0, 1.0))
    outside = inside = 0
    for seed in range(60):
        y, x = random_spans(shape, settings_, random.Random(seed))
        crop, mask = crop_image(pixels, y, x, settings_), crop_map(cells, y, x, settings_.size, 255)
        assert crop.shape == (48, 64, 3)
        assert mask.shape == (48, 64)
        np.testing.assert_array_equal(crop[..., 2] == 255, mask == 255)
        known = mask != 255
        # Half a pixel of the crop, one of the image, and rounding of grey levels.
        for channel, cell, span, n in ((0, mask % 8, x, shape[1]), (1, mask // 8, y, shape[0])):
            slack = 8 * (0.5 * (span.stop - span.start) / (span.last - span.first) + 0.5) / n + 8 / 255
            place = crop[..., channel] / 255 * 8
            assert (place - cell)[known].min() > -slack
            assert (place - cell)[known].max() < 1 + slack
        outside, inside = outside + (~known).sum(), inside + known.sum()
    assert inside > 0
    assert outside > 0 or (view == "sliding" and min(shape) > 128)


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 3000), st.floats(0.01, 20), st.integers(1, 600), st.floats(0, 1))
def test_spans_lie_inside_and_keep_the_scale(length, scale, size, place):
    span = spans(length, scale, size, place)
    assert 0 <= span.start < span.stop <= length
    assert 0 <= span.first < span.last <= size
    if length * scale >= size:
        assert (span.first, span.last) == (0, size)
        assert abs((span.stop - span.start) - size / scale) <= 1.001
    else:
        assert (span.start, span.stop) == (0, length)
        assert abs((span.last - span.first) - length * scale) <= 1.001


def test_scales_are_those_asked_for():
    settings_ = MaskData(size=(100, 100), view="sliding", scale=(0.5, 2.0))
    found = []
    for seed in range(400):
        y, _ = random_spans((1000, 1000), settings_, random.Random(seed))
        found.append(np.log2(100 / (y.stop - y.start)))
    assert abs(np.mean(found)) < 0.1  # evenly in its logarithm
    assert min(found) > -1.02
    assert max(found) < 1.02
    assert min(found) < -0.9
    assert max(found) > 0.9


def test_shrinking_far_skips_no_pixel():
    pixels = np.zeros((512, 512, 3), np.uint8)
    pixels[::8, ::8] = 255  # one in 64
    settings_ = MaskData(size=(32, 32), scale=(1.0, 1.0))
    crop = crop_image(pixels, *random_spans((512, 512), settings_, random.Random(0)), settings_)
    assert abs(crop.mean() - 255 / 64) < 0.6


@pytest.mark.parametrize("view", ["whole", "padded", "sliding"])
def test_what_evaluation_sees(tmp_path, view):
    files = whole()
    files |= {"images/train/900.jpg": image(900, 40, 20), "masks/train/900.png": png(ids(900, 40, 20))}
    source = MaskImages(config(write(tmp_path, files), view=view, mean=(0.0, 0.5, 1.0)), "train")
    assert source.canvas == (40, 32)
    assert source.shape == (16, 16, 3)
    for i in range(len(source)):
        example = source[i]
        height, width = example["size"]
        assert example["label"].shape == (40, 32)
        truth = ids(900, 40, 20) if i == 6 else ids(i)
        np.testing.assert_array_equal(example["label"][:height, :width], truth)
        assert (example["label"][height:] == 255).all()
        assert (example["label"][:, width:] == 255).all()
        h, w = example["content"]
        expected = {"whole": (16, 16), "padded": (12, 16) if i < 6 else (16, 8), "sliding": (height, width)}[view]
        assert (h, w) == expected
        assert example["image"].shape == ((40, 32, 3) if view == "sliding" else (16, 16, 3))
        around = np.concatenate([example["image"][h:].reshape(-1, 3), example["image"][:, w:].reshape(-1, 3)])
        assert (around == [0, 128, 255]).all()
        assert example["id"] == source.ids[i]
        assert "bad" not in example


def test_views_are_of_the_whole_image():
    pixels, _ = coordinates(90, 120)
    for view, size in (("whole", (30, 30)), ("padded", (30, 60)), ("padded", (60, 30))):
        seen, (h, w) = viewed(pixels, MaskData(size=size, view=view))
        np.testing.assert_allclose(seen[h // 2, :w, 0], 255 * (np.arange(w) + 0.5) / w, atol=3)
        np.testing.assert_allclose(seen[:h, w // 2, 1], 255 * (np.arange(h) + 0.5) / h, atol=3)


def test_a_turned_image_doesnt_fit_a_mask_that_isnt(tmp_path):
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 24)).save(out, "jpeg", exif=exif)
    root = write(tmp_path, {**whole(), "images/train/000.jpg": out.getvalue()})
    with pytest.raises(UserError, match="32 x 24 pixels, its image 24 x 32 once its EXIF has turned it"):
        MaskImages(config(root), "train")
    write(root, {"masks/train/000.png": png(ids(0, 32, 24))})
    assert MaskImages(config(root), "train")[0]["size"].tolist() == [32, 24]


def test_training_batches_are_random_crops_whether_held_or_not(tmp_path):
    root = write(tmp_path, whole())
    held, streamed = (Batches(MaskImages(config(root, stream=x), "train"), 3, 4, stream=x) for x in (False, True))
    for a, b in itertools.islice(zip(held.starting_at(0), streamed.starting_at(0), strict=False), 5):
        assert a["image"].shape[1:3] == a["label"].shape[1:] == held.source.shape[:2]
        assert all(np.array_equal(a[name], b[name]) for name in a)
    source, rng = held.source, random.Random(0)
    assert not np.array_equal(source.drawn(0, rng)["image"], source.drawn(0, rng)["image"])


def test_held_is_streamed_and_nothing_is_changed(tmp_path):
    root = write(tmp_path, whole())
    before = tree(root)
    streamed, held = (MaskImages(config(root, stream=stream), "train") for stream in (True, False))
    for i in range(len(streamed)):
        for a, b in ((streamed[i], held[i]), (streamed.drawn(i, random.Random(5)), held.drawn(i, random.Random(5)))):
            assert a.keys() == b.keys()
            for name in a:
                np.testing.assert_array_equal(a[name], b[name])
    drawn = streamed.drawn(0, random.Random(0))
    assert {name: (x.shape, x.dtype.name) for name, x in drawn.items()} == {
        "image": ((16, 16, 3), "uint8"), "label": ((16, 16), "uint8"), "id": ((), "int32")
    }  # fmt: skip
    assert tree(root) == before


def test_a_bad_pair_is_stood_in_for(tmp_path):
    root = write(tmp_path, whole(198, 10))
    (root / "masks/train/005.png").write_bytes(png(ids(5))[:50])
    (root / "images/train/017.jpg").write_bytes(image(17, 30, 30))  # of another size
    source = MaskImages(config(root, bad_images="skip"), "train")
    assert len(source) == 198
    for index in (5, 17):
        assert source[index]["bad"]
        assert (source[index]["label"] == 255).all()
        assert source[index]["image"].shape == (16, 16, 3)
        stand_in = source.drawn(index, random.Random(2))
        assert stand_in["id"] == source.ids[index + 1]
    assert {source.listing.where(i)[-7:]: why for i, why in source.listing.bad.items()} == {
        "005.png": "the mask is no good: it is cut off",
        "017.png": "the mask has 32 x 24 pixels, its image 30 x 30",
    }
    assert source.said[-1] == "2 bad pairs are skipped"
