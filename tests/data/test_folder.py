"""What is found in a folder: forms, splits by content, and every fault in words of its own."""

import io
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vit.config import FolderData
from vit.data.folder import SPLITS, content_share, listing, opened
from vit.errors import UserError


def jpeg(seed, size=(20, 16)):
    out = io.BytesIO()
    small = np.random.default_rng(seed).integers(0, 256, (3, 3, 3)).astype(np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(out, "jpeg")
    return out.getvalue()


def write(root, files):
    """Files by name: a number is the image of that seed."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            jpeg(content) if isinstance(content, int) else content.encode() if isinstance(content, str) else content
        )
    return root


def classes(prefix="", names=("cat", "dog"), count=20, start=0):
    return {f"{prefix}{name}/{i:03d}.jpg": start + 1000 * k + i for k, name in enumerate(names) for i in range(count)}


def look(path):
    return listing(FolderData(str(path)))


def members(found, split):
    return {found.names[i] for i in np.flatnonzero(found.splits == SPLITS.index(split))}


def fatal(found):
    return [problem.what for problem in found.problems if problem.fatal]


# ---- forms ----


def test_class_folders(tmp_path):
    extra = {
        "cat/deep/er/x.JPEG": 900,
        "cat/no_ending": 901,
        "cat/notes.txt": "BM is no image",
        ".hidden/x.jpg": 1,
        "__MACOSX/a.jpg": 2,
    }
    found = look(write(tmp_path, {**classes(), **extra, "cat/.DS_Store": "x", "README": "hello"}))
    assert found.form == "class folders, split by content"
    assert found.class_names == ["cat", "dog"]
    assert found.names == sorted([*classes(), "cat/deep/er/x.JPEG", "cat/no_ending"])
    assert [found.class_names[i] for i in found.labels] == [name[:3] for name in found.names]
    assert not found.bad


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "validation", "testing"), ("train", "valid")])
def test_split_folders(tmp_path, names):
    files = {}
    for k, name in enumerate(names):
        files |= classes(f"{name}/", count=3 + k, start=10_000 * k)
    found = look(write(tmp_path, files))
    assert found.form == f"class folders in {', '.join(sorted(names))}"
    for split, name in zip(SPLITS, names, strict=False):
        assert members(found, split) == {f for f in files if f.startswith(name)}
    assert not fatal(found)


def test_val_is_taken_from_train_and_never_from_test(tmp_path):
    files = {**classes("train/", count=60), **classes("test/", count=5, start=50_000)}
    found = look(write(tmp_path, files))
    assert members(found, "test") == {f for f in files if f.startswith("test")}
    assert 3 <= len(members(found, "val")) <= 30
    assert "val taken from train by content" in found.form


def test_a_class_may_be_called_train(tmp_path):
    found = look(write(tmp_path, classes(names=("bus", "train"))))
    assert found.class_names == ["bus", "train"]


@pytest.mark.parametrize(("kind", "mark"), [("csv", ","), ("csv", ";"), ("tsv", "\t"), ("jsonl", "")])
def test_tables(tmp_path, kind, mark):
    rows = [(f"images/{i}.jpg", "dög" if i % 3 else "cat", SPLITS[i % 4 % 3]) for i in range(24)]
    if kind == "jsonl":
        text = "\n".join(json.dumps(dict(zip(("file_name", "label", "split"), row, strict=True))) for row in rows) + "\n\n"
    else:
        text = "\ufeff" + "\r\n".join(mark.join(x) for x in [("Path", "Label", "Split"), *rows])
    write(tmp_path, {f"images/{i}.jpg": i for i in range(24)} | {f"labels.{kind}": text, "other.csv": "a,b\n1,2\n"})
    for path in (tmp_path, tmp_path / f"labels.{kind}"):
        found = look(path)
        assert (found.form, found.class_names) == (f"table labels.{kind}", ["cat", "dög"])
        assert {
            (n, found.class_names[k], SPLITS[s]) for n, k, s in zip(found.names, found.labels, found.splits, strict=True)
        } == {*rows}
        assert not fatal(found)


@pytest.mark.parametrize("text", ["path,label\n{}", "\n\n{}"])
def test_a_table_by_a_path_from_here(tmp_path, monkeypatch, text):
    kind = "csv" if text.startswith("path") else "jsonl"
    rows = [f"{i}.jpg,{i % 2}" if kind == "csv" else json.dumps({"path": f"{i}.jpg", "label": i % 2}) for i in range(24)]
    folder = write(tmp_path / "pets", {f"{i}.jpg": i for i in range(24)} | {f"all.{kind}": text.format("\n".join(rows))})
    for here, path in ((folder, "."), (folder, f"all.{kind}"), (tmp_path, "pets"), (folder / "..", f"./pets/all.{kind}")):
        monkeypatch.chdir(here)
        found = look(path)
        assert sorted(found.names) == sorted(f"{i}.jpg" for i in range(24))
        assert not fatal(found)


def test_a_table_a_split_and_labels_that_are_numbers(tmp_path):
    files = {f"{i}.jpg": i for i in range(30)}
    tables = {f"{split}.csv": "path,label\n" + "".join(f"{i}.jpg,{i % 11}\n" for i in part) for split, part in
              {"train": range(20), "val": range(20, 30)}.items()}  # fmt: skip
    found = look(write(tmp_path, files | tables))
    assert found.class_names == [str(i) for i in range(11)]  # 10 after 9
    assert (len(members(found, "train")), len(members(found, "val"))) == (20, 10)


def test_a_prepared_set_of_tfds(tmp_path):
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():

        class Mine(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["b", "a"])}
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {"train": self.examples(40), "test": self.examples(6)}

            def examples(self, count):
                yield from ((i, {"image": jpeg(i), "label": i % 2}) for i in range(count))

            def _generate_examples(self):
                raise NotImplementedError

    Mine(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    for path in (tmp_path, tmp_path / "mine", tmp_path / "mine" / "1.0.0"):
        found = look(path)
        assert found.form == "TFDS set mine 1.0.0, val taken from train by content"
        assert found.class_names == ["b", "a"]
        assert len(members(found, "train")) + len(members(found, "val")) == 40
        assert len(members(found, "test")) == 6
        assert {found.read(i) for i in range(len(found.names))} == {jpeg(i) for i in range(40)}


def test_a_saved_set_of_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["b", "a"])})
    data = {"image": [{"bytes": jpeg(i), "path": None} for i in range(30)], "label": [i % 2 for i in range(30)]}
    datasets.Dataset.from_dict(data, features=features).save_to_disk(str(tmp_path / "set"))
    found = look(tmp_path / "set")
    assert found.form == f"Hugging Face data set {tmp_path / 'set'}, split by content"
    assert (found.class_names, len(found.names)) == (["b", "a"], 30)
    assert [found.read(i) for i in range(30)] == data["image"] or [found.read(i) for i in range(30)] == [
        jpeg(i) for i in range(30)
    ]
    assert found.labels.tolist() == data["label"]


# ---- the split by content ----


@settings(deadline=None, max_examples=200)
@given(st.lists(st.binary(max_size=30), max_size=50), st.lists(st.binary(max_size=30), max_size=50))
def test_a_share_follows_from_the_bytes_alone(some, more):
    before = {x: content_share(x) for x in some}
    after = {x: content_share(x) for x in more + some}
    assert all(after[x] == share for x, share in before.items())
    assert all(0 <= share < 1 for share in after.values())


def test_shares_are_spread_evenly_and_large_files_give_what_their_bytes_give(tmp_path):
    shares = np.array([content_share(str(i).encode()) for i in range(5000)])
    assert np.abs(np.histogram(shares, 10, (0, 1))[0] - 500).max() < 110  # five standard deviations
    for length in (0, 1, 65_536, 65_537, 200_001):
        content = np.random.default_rng(length).bytes(length)
        (tmp_path / "file").write_bytes(content)
        assert content_share(tmp_path / "file") == content_share(content)


def test_files_that_are_added_move_no_other_and_copies_stay_together(tmp_path):
    before = look(write(tmp_path, classes(names=("a", "b", "c"), count=100)))
    place = dict(zip(before.names, before.splits, strict=True))
    write(tmp_path, {**classes(names=("a", "b", "d"), count=60, start=77_000), "b/copy.jpg": 5, "a/0.jpg": 5, "x.txt": ""})
    write(tmp_path, {f"a/extra{i}.jpg": 300_000 + i for i in range(50)})
    after = look(tmp_path)
    now = dict(zip(after.names, after.splits, strict=True))
    unmoved = [name for name in before.names if not name.startswith(("a/", "b/")) or int(name[2:5]) >= 60]
    assert all(now[name] == place[name] for name in unmoved)
    assert now["b/copy.jpg"] == now["a/0.jpg"]
    for label in range(3):  # about as many of each class
        part = before.splits[before.labels == label]
        assert 65 <= np.sum(part == 0) <= 95
        assert np.sum(part == 1) >= 2
        assert np.sum(part == 2) >= 2


# ---- faults ----


def symlink(name, target):
    return lambda root: os.symlink(target, root / name)


SPLIT = {**classes("train/", count=3), **classes("val/", count=3, start=500)}
FAULTS = {
    "class only in val": (SPLIT | {"val/fox/1.jpg": 7}, "class 'fox' is only in val"),
    "empty class": ({**SPLIT, "train/fox/readme.txt": ""}, "class 'fox' has no images"),
    "one class": (classes(names=("cat",)), "all images are of one class"),
    "no train": (classes("val/"), "class 'cat' is only in val"),
    "two folders for a split": (SPLIT | classes("valid/", count=3, start=900), "two folders are the same split"),
    "too few to split": ({"cat/1.jpg": 1, "dog/1.jpg": 2}, "there are no images to validate on"),
    "symlink loop": (SPLIT, "a symbolic link leads back", symlink("train/cat/loop", "..")),
    "class not UTF-8": (SPLIT, r"the name of class '\\xff' is not UTF-8", lambda root: write(root, {"train/\udcff/1.jpg": 3})),
}
TABLES = {
    "no path": ("path,label\n,cat\n", "it has no path"),
    "no label": ("path,label\na.jpg,\n", "it has no label"),
    "label outside": ("path,label\na.jpg,-1\n", "label -1 is below 0"),
    "too few values": ("path,label\na.jpg\n", "this line has 1 values, the header 2"),
    "duplicate row": ("path,label\na.jpg,cat\na.jpg,cat\n", "'a.jpg' is named twice, before in line 2"),
    "duplicate by another name": ("path,label\na.jpg,cat\nx/../a.jpg,dog\n", "'a.jpg' is named twice"),
    "leads out": ("path,label\n../a.jpg,cat\n", "'../a.jpg' leads out of the table's folder"),
    "absolute": ("path,label\n/etc/passwd,cat\n", "'/etc/passwd' leads out"),
    "unknown split": ("path,label,split\na.jpg,cat,final\n", "there is no split 'final'"),
    "some without split": ("path,label,split\na.jpg,cat,train\nb.jpg,dog,\n", "some images have a split and some don't"),
    "not UTF-8": (b"path,label\na.jpg,caf\xe9\n", "this line is not UTF-8"),
    "open quote": ('path,label\n"a.jpg,cat\n', "this is not CSV"),
    "NUL": (b"path,label\na\0.jpg,cat\n", "it has no path"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_folders(tmp_path, name):
    files, what, *more = FAULTS[name]
    write(tmp_path, files)
    for do in more:
        do(tmp_path)
    before = sorted(os.walk(tmp_path, followlinks=False))
    assert any(text.startswith(what) for text in fatal(look(tmp_path))), fatal(look(tmp_path))
    with pytest.raises(UserError):
        opened(FolderData(str(tmp_path)))
    assert sorted(os.walk(tmp_path, followlinks=False)) == before


@pytest.mark.parametrize("name", TABLES)
def test_faults_of_tables(tmp_path, name):
    text, what = TABLES[name]
    write(tmp_path, {"a.jpg": 1, "b.jpg": 2, "c.csv": text})
    try:
        said = fatal(look(tmp_path / "c.csv"))
    except UserError as error:  # nothing else was in it
        said = [error.what] if "line" in error.where else []
    assert any(text.startswith(what) for text in said), said


def test_faults_of_jsonl(tmp_path):
    good = '{"path": "a.jpg", "label": "cat"}\n{"path": "b.jpg", "label": 3}\n'
    for line, what in (
        ("{", "this is not JSON"), ("[1]", "this is not a JSON object"), ('{"path": 3, "label": "x"}', "it has no path"),
        ('{"path": "c.jpg", "label": null}', "it has no label"), ('{"path": "c.jpg", "label": true}', "it has no label"),
        ("[" * 100_000, "this is not JSON"),
    ):  # fmt: skip
        write(tmp_path, {"a.jpg": 1, "b.jpg": 2, "t.jsonl": good + line})
        assert any(text.startswith(what) for text in fatal(look(tmp_path / "t.jsonl"))), (line, what)


def test_images_known_to_be_bad_are_named(tmp_path):
    write(tmp_path, {**classes(), "cat/\udcff.jpg": 4})
    (tmp_path / "cat" / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "dog" / "pipe.jpg")
    found = look(tmp_path)
    assert {found.names[i]: why for i, why in found.bad.items()} == {
        "cat/\udcff.jpg": "its name is not UTF-8",
        "cat/gone.jpg": "it is a link that leads nowhere",
        "dog/pipe.jpg": "it is not a file",
    }
    write(tmp_path, {"t.csv": "path,label\ncat/000.jpg,a\nnothing.jpg,b\ncat,b\n"})
    assert list(look(tmp_path / "t.csv").bad.values()) == ["it is not a file", "it isn't there"]


def test_what_is_not_used_is_said(tmp_path):
    found = look(write(tmp_path, {**SPLIT, "extra/x/1.jpg": 1, "train/stray.jpg": 2}))
    said = [problem.what for problem in found.problems if not problem.fatal]
    assert said == []  # a train folder with images of its own isn't one of splits: then train, val and extra are classes
    assert found.class_names == ["extra", "train", "val"]
    (tmp_path / "train" / "stray.jpg").rename(tmp_path / "stray.jpg")
    found = look(tmp_path)
    assert any("folders beside the splits are not used: extra" in problem.what for problem in found.problems)
    assert not fatal(found)
