"""`vit check`: what it finds, what it writes, and that it changes nothing."""

import csv
import hashlib
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPO, program_environment
from tests.data.faults import folders
from tests.data.malformed import picture
from vit import cli
from vit.config import FolderData
from vit.data.alike import near, thumbnail
from vit.data.check import examine, quick
from vit.data.folder import listing
from vit.errors import UserError


def noisy(seed, height=120, width=160):
    """A picture as photographs are: smooth, with detail."""
    detail = np.random.default_rng(seed).integers(-60, 60, (height // 4, width // 4, 3)).repeat(4, 0).repeat(4, 1)
    return np.clip(picture(seed, height, width) + detail, 0, 255).astype(np.uint8)


def copies(image):
    """The same picture, saved again in other ways."""
    height, width = image.shape[:2]
    for kind, options in (("JPEG", {"quality": 40}), ("JPEG", {"quality": 85}), ("WEBP", {"quality": 50}), ("PNG", {})):
        out = io.BytesIO()
        Image.fromarray(image).save(out, kind, **options)
        yield np.asarray(Image.open(out).convert("RGB"))
    for factor in (0.5, 0.8, 1.7):
        yield np.asarray(Image.fromarray(image).resize((int(width * factor), int(height * factor)), Image.Resampling.LANCZOS))


def test_a_picture_saved_again_is_found_and_no_other():
    pictures = [noisy(seed) for seed in range(60)]
    again = [(i, copy) for i, image in enumerate(pictures) for copy in copies(image)]
    small = np.array([thumbnail(image) for image in [*pictures, *(copy for _, copy in again)]])
    groups = np.array([0] * len(pictures) + [1] * len(again))
    found = near(small, groups)
    assert found == {len(pictures) + n: i for n, (i, _) in enumerate(again)}


def test_copies_in_one_split_are_not_told_as_near():
    image = noisy(0)
    small = np.array([thumbnail(copy) for copy in copies(image)])
    assert near(small, np.zeros(len(small), int)) == {}
    assert near(small[:0], np.zeros(0, int)) == {}
    assert near(small[:1], np.zeros(1, int)) == {}


def test_many_plain_images_are_no_trouble():
    small = np.full((3000, 16, 16), 200, np.uint8)
    found = near(small, np.arange(3000) % 2)
    assert len(found) == 1500


@pytest.fixture
def data(tmp_path):
    """Cats and dogs, with an exact copy across splits under another label, one within a split, and a near one."""
    root = folders(tmp_path / "pets")
    (root / "val" / "dog" / "copy.png").write_bytes((root / "train" / "cat" / "0.png").read_bytes())
    (root / "train" / "dog" / "twice.png").write_bytes((root / "train" / "dog" / "1.png").read_bytes())
    Image.fromarray(noisy(1)).save(root / "train" / "cat" / "big.png")
    Image.fromarray(noisy(1)[::2, ::2]).save(root / "val" / "cat" / "small.jpg", quality=90)
    return root


def tree(root):
    """Everything below a folder: times, modes, contents."""
    return {
        path: (
            os.lstat(path).st_mtime_ns,
            os.lstat(path).st_mode,
            hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"",
        )
        for path in [root, *sorted(root.rglob("*"))]
    }


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_it_finds(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = tree(data)
    cli.run(["check", str(data)])
    assert tree(data) == before
    out = capsys.readouterr().out
    assert "found class folders in train, val: 16 images of 2 classes" in out
    assert "cat                   5         3         0" not in out  # the columns are as wide as the names
    assert "exact duplicates: 2, across splits 1, under different labels 1" in out
    assert "near duplicates across splits: 1" in out
    assert "bad files: 0" in out
    left = tmp_path / "check-pets"
    assert {p.name for p in left.iterdir()} == {"bad_files.csv", "duplicates.csv", "problems.csv", "classes.png", "sizes.png"}
    assert rows(left / "bad_files.csv") == []
    pairs = {
        (r["kind"], r["file"].removeprefix(f"{data}/"), r["of"].removeprefix(f"{data}/")) for r in rows(left / "duplicates.csv")
    }
    assert pairs == {
        ("exact", "val/dog/copy.png", "train/cat/0.png"),
        ("exact", "train/dog/twice.png", "train/dog/1.png"),
        ("near", "val/cat/small.jpg", "train/cat/big.png"),
    }
    for name in ("classes.png", "sizes.png"):
        assert np.asarray(Image.open(left / name).convert("L")).std() > 10


def test_bad_files(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = (data / "train" / "cat" / "big.png").read_bytes()
    (data / "train" / "cat" / "cut.png").write_bytes(good[: len(good) // 2])
    (data / "val" / "dog" / "empty.jpg").touch()
    with pytest.raises(UserError, match="2 of 18 images are bad, the first: it is cut off") as told:
        cli.run(["check", str(data), "--out", "found"])
    assert told.value.where == str(data / "train" / "cat" / "cut.png")
    assert "found/bad_files.csv" in told.value.fix
    listed = [(r["file"], r["split"], r["class"], r["reason"]) for r in rows(tmp_path / "found" / "bad_files.csv")]
    assert listed == [
        (str(data / "train" / "cat" / "cut.png"), "train", "cat", "it is cut off"),
        (str(data / "val" / "dog" / "empty.jpg"), "val", "dog", "it is empty"),
    ]
    with pytest.raises(UserError, match="2 of 18"):  # over 1 %
        cli.run(["check", str(data), "--data.bad-images", "skip"])


def test_one_bad_file_in_a_hundred_may_be_skipped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = folders(tmp_path / "pets", 40, 20)
    (root / "train" / "cat" / "empty.jpg").touch()
    cli.run(["check", str(root), "--data.bad-images", "skip"])
    assert "bad files: 1" in capsys.readouterr().out


def test_the_quick_look_knows_headers_and_stops_in_time(data):
    (data / "train" / "cat" / "text.jpg").write_text("no image")
    found = listing(FolderData(dir=str(data)))
    quick(found)
    assert list(found.bad.values()) == ["it is not a JPEG, PNG, WebP, BMP or GIF"]
    many = folders(data.parent / "many", 60, 4)
    found = listing(FolderData(dir=str(many)))
    read, seen = found.read, []
    found.read = lambda i: seen.append(i) or read(i)
    quick(found, seconds=0)
    assert len(set(seen)) == 64


def test_large_images_are_decoded_one_at_a_time_and_right(tmp_path):
    root = folders(tmp_path / "pets")
    Image.fromarray(np.zeros((4200, 4000, 3), np.uint8)).save(root / "train" / "cat" / "large.png", compress_level=1)
    findings = examine(FolderData(dir=str(root)))
    assert [4200, 4000] in findings.sizes.tolist()
    assert not findings.listing.bad


def test_the_findings_never_lie_in_the_data_set(data, monkeypatch):
    monkeypatch.chdir(data)
    for args in (["."], [str(data), "--out", "train"], [str(data), "--out", str(data)]):
        with pytest.raises(UserError, match="would lie in the data set"):
            cli.run(["check", *args])


def test_it_needs_no_jax(data, tmp_path):
    script = f"""import sys
from vit import cli
cli.run(["check", {str(data)!r}])
assert "jax" not in sys.modules"""
    env = {**program_environment(), "PYTHONPATH": str(REPO)}
    subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=tmp_path, env=env, check=True, capture_output=True)
