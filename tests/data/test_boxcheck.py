"""`vit check` of sets with boxes: what it finds, what it writes, that it changes nothing, which folders it takes for such."""

import contextlib
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPO, program_environment
from tests.data.box_faults import FAULTS, PICTURES, built, coco, voc, xml, yolo
from tests.data.faults import folders
from tests.data.mask_faults import coco as mask_coco
from tests.data.mask_faults import whole, write
from tests.data.test_check import rows, tree
from vit import cli
from vit.data.boxset import has_boxes
from vit.data.maskcheck import has_masks
from vit.errors import UserError

PICTURES_LEFT = ("classes.png", "sizes.png", "box_sizes.png", "boxes.png")


def test_what_it_finds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = write(
        tmp_path / "pets", {**yolo("1 0.5 0.5 1.5 0.5"), "labels/train/001.txt": "", "images/val/copy.jpg": PICTURES[1]}
    )
    before = tree(root)
    cli.run(["check", str(root)])
    assert tree(root) == before
    out = capsys.readouterr().out
    assert "found YOLO's TXT with data.yaml: 10 images with boxes of 2 classes; 6 train, 4 val, 0 test" in out
    assert next(line for line in out.splitlines() if line.startswith("cat")).split() == ["cat", "4", "3", "0"]
    assert next(line for line in out.splitlines() if line.startswith("all")).split() == ["all", "9", "6", "0"]
    assert "boxes, width x height: from 6 x 12 to 32 x 12 pixels, median 8 x 12" in out
    assert "boxes on an image: up to 2; images without: 2" in out
    assert "crowds or difficult: 0; reach out of their image and are clipped: 1" in out
    assert "images that another split has too, byte for byte: 1" in out
    left = tmp_path / "check-pets"
    assert {p.name for p in left.iterdir()} == {*PICTURES_LEFT, "bad_files.csv", "duplicates.csv", "problems.csv"}
    assert [r["file"].rpartition("/")[2] for r in rows(left / "duplicates.csv")] == ["copy.jpg"]
    for name in PICTURES_LEFT:
        assert np.asarray(Image.open(left / name).convert("L")).std() > 5


def test_all_that_is_wrong_is_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = voc(xml(("cat", 5, 5, 5, 5), ("dog", 9, 2, 2, 9), ("dog", 1, 1, 9, 9)), train="000\n001\n002\n003\n004\n005\n900\n")
    files |= {"JPEGImages/001.jpg": PICTURES[1][:200], "Annotations/002.xml": xml(("cat", 2, 2, 9, 9), size=(9, 9))}
    root = write(tmp_path / "set", files)
    before = tree(root)
    with pytest.raises(UserError) as told:
        cli.run(["check", str(root), "--out", "found"])
    assert tree(root) == before
    assert "3 such, all in found/problems.csv" in told.value.fix
    assert "--data.bad-boxes drop" in told.value.fix
    problems = {r["where"].removeprefix(f"{root}/"): (r["kind"], r["what"]) for r in rows(tmp_path / "found" / "problems.csv")}
    cannot = "this box can't be used: "
    assert problems == {
        "ImageSets/Main/train.txt, line 7": ("fatal", "'900' has no XML"),
        "Annotations/000.xml, line 6": ("fatal", cannot + "it has no area (xmin 5 ymin 5 xmax 5 ymax 5)"),
        "Annotations/000.xml, line 15": ("fatal", cannot + "its end lies before its start (xmin 9 ymin 2 xmax 2 ymax 9)"),
    }
    bad = {r["file"].removeprefix(f"{root}/"): r["reason"] for r in rows(tmp_path / "found" / "bad_files.csv")}
    assert bad["JPEGImages/002.jpg"] == "its annotation is of 9 x 9 pixels, and it has 32 x 24"
    assert set(bad) == {"JPEGImages/001.jpg", "JPEGImages/002.jpg"}
    assert "bad boxes and other faults of annotations: 3" in capsys.readouterr().out


def test_bad_boxes_may_be_dropped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = built(tmp_path / "set", FAULTS["boxes: COCO no area"])
    with pytest.raises(UserError, match="no area"):
        cli.run(["check", str(root)])
    cli.run(["check", str(root), "--data.bad-boxes", "drop"])
    assert "bad boxes and other faults of annotations: 1" in capsys.readouterr().out
    assert [r["kind"] for r in rows(tmp_path / "check-set" / "problems.csv")] == ["dropped"]


def test_annotations_in_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = write(tmp_path / "set", coco())
    for args in (["{}/train.json"], ["{}", "--data.annotations", "{}/train.json"]):
        with contextlib.suppress(UserError):  # six images may be too few for a split by content
            cli.run(["check", *(arg.format(root).replace("/train", "/annotations/instances_train") for arg in args)])
        assert "found COCO boxes in annotations/instances_train.json, split by content" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if "nothing" not in name][::4])
def test_what_training_refuses_so_does_the_check(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    flags = [x for key, values in FAULTS[name].settings.items() for x in (f"--data.{key}", *map(str, values))]
    root = built(tmp_path / "set", FAULTS[name])
    assert has_boxes(str(root))
    assert not has_masks(str(root)) or "COCO" in name
    with pytest.raises(UserError):
        cli.run(["check", str(root), *flags])


def test_which_folders_are_sets_with_boxes(tmp_path):
    assert not has_boxes(str(folders(tmp_path / "pets")))
    assert not has_boxes(str(write(tmp_path / "masks", whole())))
    assert not has_boxes(str(tmp_path / "nowhere"))
    assert not has_boxes("hf:beans")
    for name, files in {"voc": voc(), "yolo": yolo(), "bare": yolo(yaml=None), "coco": coco()}.items():
        root = str(write(tmp_path / name, files))
        assert has_boxes(root)
        assert not has_masks(root)
    assert not has_boxes(str(write(tmp_path / "texts", {"cat/1.jpg": PICTURES[1], "cat/1.txt": "a cat, 2 years old"})))


def test_a_set_with_both_is_one_of_masks_unless_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = mask_coco()
    content = json.loads(files["instances.json"])
    content["annotations"] = [
        {"id": i, "image_id": i, "category_id": 3, "segmentation": [[1, 1, 9, 1, 9, 9]], "bbox": [1, 1, 8, 8]}
        for i in range(20)
    ]
    root = write(tmp_path / "set", {**files, "instances.json": json.dumps(content)})
    cli.run(["check", str(root)])
    assert "with masks" in capsys.readouterr().out
    cli.run(["check", str(root), "--as", "boxes"])
    assert "with boxes" in capsys.readouterr().out
    with pytest.raises(UserError, match="can't be looked at as 'cats'"):
        cli.run(["check", str(root), "--as", "cats"])


def test_it_needs_no_jax(tmp_path):
    root = write(tmp_path / "set", yolo())
    script = f"""import sys
from vit import cli
cli.run(["check", {str(root)!r}])
assert "jax" not in sys.modules"""
    env = {**program_environment(), "PYTHONPATH": str(REPO)}
    subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=tmp_path, env=env, check=True, capture_output=True)
