"""`vit check` of sets with masks: what it finds, what it writes, that it changes nothing, which folders it takes for such."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPO, program_environment
from tests.data.faults import folders
from tests.data.mask_faults import FAULTS, MASK, built, coco, config, ids, image, png, whole, write
from tests.data.test_check import rows, tree
from tests.data.test_folder import classes
from tests.data.test_folder import write as write_images
from vit import cli
from vit.data.maskcheck import has_masks, quick
from vit.data.maskset import listing, named
from vit.errors import UserError

PICTURES = ("classes.png", "sizes.png", "overlays.png")


@pytest.fixture
def data(tmp_path):
    """A good set with names, a mask that is all void, and an image that both splits have."""
    root = write(tmp_path / "street", {**whole(), "classes.txt": "road\nhouse\nsky\n"})
    write(root, {"images/val/copy.jpg": image(1), "masks/val/copy.png": png(ids(1))})
    return write(root, {"masks/train/002.png": png(ids() * 0 + 255)})


def test_what_it_finds(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = tree(data)
    cli.run(["check", str(data)])
    assert tree(data) == before
    out = capsys.readouterr().out
    assert "found images with masks in masks: 10 images with masks of 3 classes; 6 train, 4 val, 0 test" in out
    assert "bad pairs: 0" in out
    assert "masks that are all void: 1" in out
    assert "images that another split has too, byte for byte: 1" in out
    assert "width x height: from 32 x 24 to 32 x 24 pixels" in out
    share = np.mean([np.mean(ids(i) == 1) for i in (0, 1, 3, 4, 5)])
    line = next(line for line in out.splitlines() if line.startswith("house"))
    assert line.split()[1] == f"{share:.2%}"
    assert line.split()[3] == "-"
    assert next(line for line in out.splitlines() if line.startswith("void")).split()[1] == f"{1 / 6:.2%}"
    left = tmp_path / "check-street"
    assert {p.name for p in left.iterdir()} == {*PICTURES, "bad_files.csv", "duplicates.csv", "problems.csv"}
    assert [(r["file"], r["of"]) for r in rows(left / "duplicates.csv")] == [
        (str(data / "images/val/copy.jpg"), str(data / "images/train/001.jpg"))
    ]
    for name in PICTURES:
        assert np.asarray(Image.open(left / name).convert("L")).std() > 10


def test_all_that_is_wrong_is_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = {
        "masks/train/000.png": None, "masks/train/900.png": png(ids()), "masks/train/001.png": png(ids(0, 32, 24)),
        "masks/train/002.png": png(ids(0, K=5)), "masks/train/003.png": png(ids())[:60], "images/val/100.jpg": b"no image",
        "classes.txt": "a\nb\nc\n",
    }  # fmt: skip
    root = built(tmp_path / "set", FAULTS["masks: image without mask"]._replace(files=files))
    before = tree(root)
    with pytest.raises(UserError, match="this image has no mask") as told:
        cli.run(["check", str(root), "--out", "found"])
    assert tree(root) == before
    assert "2 such, all in found/problems.csv" in told.value.fix
    bad = {r["file"].removeprefix(f"{root}/"): r["reason"] for r in rows(tmp_path / "found" / "bad_files.csv")}
    assert bad == {
        "masks/train/001.png": "the mask has 24 x 32 pixels, its image 32 x 24",
        "masks/train/002.png": "the mask has the id 3 at x 12, y 0; the 3 classes have 0 to 2",
        "masks/train/003.png": "the mask is no good: it is cut off",
        "images/val/100.jpg": "it is not a JPEG, PNG, WebP, BMP or GIF",
    }
    problems = {r["where"].removeprefix(f"{root}/"): r["what"] for r in rows(tmp_path / "found" / "problems.csv")}
    assert problems == {"images/train/000.jpg": "this image has no mask", "masks/train/900.png": "this mask has no image"}
    assert "bad pairs: 4" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if not fault.alone][::3])
def test_what_training_refuses_so_does_the_check(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    settings = FAULTS[name].settings
    flags = [x for key, values in settings.items() for x in (f"--data.{key}", *map(str, values))]
    root = built(tmp_path / "set", FAULTS[name])
    assert has_masks(str(root))
    with pytest.raises(UserError):
        cli.run(["check", str(root), *flags])


def test_bad_pairs_may_be_skipped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = write(tmp_path / "set", {**whole(99, 10), MASK: png(ids())[:70]})
    with pytest.raises(UserError, match="1 of 109 pairs are bad"):
        cli.run(["check", str(root)])
    cli.run(["check", str(root), "--data.bad-images", "skip"])
    assert "bad pairs: 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "other"),
    [("mask/{}.png", "no"), ("train/mask/{}.png", "train/no mask"), ("labels/{}.jpg", "b"), ("cat_mask/{}.png", "cat"),
     ("train/images/a{}.jpg", "train/seg")],
)  # fmt: skip
def test_class_folders_are_none(tmp_path, path, other):
    """Classes of any name, photographs all."""
    files = {path.format(i): image(i, kind="png" if path.endswith("png") else "jpeg") for i in range(5)}
    files |= {f"{other}/{i}.jpg": image(i + 9) for i in range(5)}
    if "train" in path:
        files |= {name.replace("train", "val"): content for name, content in files.items()}
    assert not has_masks(str(write(tmp_path, files)))


def test_which_folders_are_sets_with_masks(tmp_path, monkeypatch):
    assert not has_masks(str(folders(tmp_path / "pets")))
    assert not has_masks(str(write_images(tmp_path / "split", {**classes("train/"), **classes("val/", count=3, start=900)})))
    assert not has_masks(str(tmp_path / "nowhere"))
    assert not has_masks("hf:beans")
    assert has_masks(str(write(tmp_path / "coco", coco())))
    assert has_masks(str(write(tmp_path / "jpeg", {n.replace("png", "jpg"): image() for n in whole()})))
    assert has_masks(str(write(tmp_path / "camvid", {n.replace("images/", "").replace("masks/train", "trainannot").replace(
        "masks/val", "valannot"): c for n, c in whole().items()})))  # fmt: skip


def test_the_quick_look_stops_in_time(tmp_path):
    found = listing(config(write(tmp_path, whole(90, 10))))
    named(found, config(tmp_path))
    raw, seen = found.raw, []
    found.raw = lambda i: seen.append(i) or raw(i)
    quick(found, seconds=0)
    assert len(set(seen)) == 64


def test_it_needs_no_jax(data, tmp_path):
    script = f"""import sys
from vit import cli
cli.run(["check", {str(data)!r}])
assert "jax" not in sys.modules"""
    env = {**program_environment(), "PYTHONPATH": str(REPO)}
    subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=tmp_path, env=env, check=True, capture_output=True)
