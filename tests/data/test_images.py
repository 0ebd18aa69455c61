"""Sources of image files: what training and evaluation see, and what stands in for a bad image."""

import random
from itertools import islice

import numpy as np
import pytest

from tests.data.test_folder import classes, jpeg, write
from vit.config import FolderData
from vit.data.batches import Batches, once
from vit.data.crop import as_evaluated, inception_crop
from vit.data.decode import decode
from vit.data.sources import describe, labels, open_source, said, splits
from vit.errors import UserError


@pytest.fixture
def folder(tmp_path):
    files = classes("train/", count=60)
    files = {name: jpeg(seed, (20 + seed % 7, 16 + seed % 5)) for name, seed in files.items()}
    return write(tmp_path, {**files, **classes("val/", count=41, start=500)})


def config(folder, **changes):
    return FolderData(str(folder), size=12, **changes)


def test_what_a_source_says(folder):
    source = open_source(config(folder), "train")
    assert splits(config(folder)) == ("train", "val")
    expected = {"dataset": folder.name, "class_names": ["cat", "dog"], "image_size": [12, 12], "channels": 3}
    assert describe(source) == expected
    assert said(source) == ["found class folders in train, val: 2 classes; images: 120 train, 82 val, 0 test"]
    np.testing.assert_array_equal(labels(source), [0] * 60 + [1] * 60)
    with pytest.raises(UserError, match="it has no test split"):
        open_source(config(folder), "test")


def test_examples_are_the_files(folder):
    source = open_source(config(folder, crop=0.9), "train")
    for index in (0, 7, 119):
        file = folder / source.listing.names[source[index]["id"]]
        image = decode(file)
        np.testing.assert_array_equal(source[index]["image"], as_evaluated(image, (12, 12), 3, 0.9))
        drawn = source.drawn(index, random.Random(3))
        np.testing.assert_array_equal(drawn["image"], inception_crop(image, 12, random.Random(3)))
    assert not {*open_source(config(folder), "val").ids} & {*source.ids}


def test_streamed_batches_resume_and_come_in_parts(folder):
    source = open_source(config(folder), "train")
    whole = list(islice(Batches(source, 5, 24, stream=True).starting_at(0), 7))
    again = list(islice(Batches(source, 5, 24, stream=True).starting_at(4), 3))
    parts = [list(islice(Batches(source, 5, 24, (p, 2), stream=True).starting_at(0), 7)) for p in range(2)]
    for i, batch in enumerate(whole):
        for name, x in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[i][name] for part in parts]), x)
            if i >= 4:
                np.testing.assert_array_equal(again[i - 4][name], x)


@pytest.mark.parametrize("parts", [1, 2])
def test_evaluation_in_threads_is_evaluation_in_order(folder, parts):
    source, held = open_source(config(folder), "val"), open_source(config(folder, stream=False), "val")
    for part in range(parts):
        pairs = zip(once(source, 16, (part, parts), stream=True), once(held, 16, (part, parts)), strict=True)
        for a, b in pairs:
            for name in a:
                np.testing.assert_array_equal(a[name], b[name])


# ---- bad images ----


def bad_at(folder, *names):
    for name in names:
        (folder / name).write_bytes((folder / name).read_bytes()[:-9])


def test_a_bad_image_ends_the_run(folder):
    bad_at(folder, "train/cat/007.jpg")
    source = open_source(config(folder), "train")
    with pytest.raises(UserError, match=r"this image can't be used: its JPEG pixels are [\s\S]*train/cat/007.jpg"):
        source[7]
    with pytest.raises(UserError, match="this image can't be used"):
        list(islice(Batches(source, 0, 20, stream=True).starting_at(0), 6))


def test_the_next_good_image_stands_in_for_a_bad_one(folder, capsys):
    bad_at(folder, "train/dog/058.jpg", "train/dog/059.jpg")
    skipping = config(folder, bad_images="skip")
    source = open_source(skipping, "train")
    for index in (118, 119):  # the last two; the first is the next
        drawn, first = (source.drawn(i, random.Random(1)) for i in (index, 0))
        for name in drawn:
            np.testing.assert_array_equal(drawn[name], first[name])
    err = capsys.readouterr().err
    assert err.count("skipped ") == 2
    assert "058.jpg: its JPEG pixels are cut off or damaged (Premature end of JPEG file) (1 of 202 images so far)" in err
    assert said(source)[-1] == "2 bad images are skipped"
    whole = [b["id"] for b in islice(Batches(source, 0, 20, stream=True).starting_at(0), 12)]
    del source
    again = [b["id"] for b in islice(Batches(open_source(skipping, "train"), 0, 20, stream=True).starting_at(6), 6)]
    np.testing.assert_array_equal(whole[6:], again)
    resident = Batches(open_source(config(folder, bad_images="skip", stream=False), "train"), 0, 20)
    np.testing.assert_array_equal(whole, [b["id"] for b in islice(resident.starting_at(0), 12)])
    assert not {118, 119} & set(np.concatenate(whole).tolist())


def test_evaluation_leaves_bad_images_out(folder):
    bad_at(folder, "val/cat/000.jpg")
    source = open_source(config(folder, bad_images="skip"), "val")
    for stream in (True, False):
        batches = list(once(source, 16, stream=stream))
        kept = np.concatenate([b["id"][b["mask"]] for b in batches])
        np.testing.assert_array_equal(kept, source.ids[1:])


def test_more_than_one_in_a_hundred_are_not_skipped(folder):
    bad_at(folder, "train/cat/001.jpg", "train/cat/002.jpg", "train/cat/003.jpg")
    source = open_source(config(folder, bad_images="skip"), "train")
    assert not source[0].get("bad")
    assert source[1]["bad"]
    assert source[2]["bad"]
    with pytest.raises(UserError, match="3 of 202 images are bad, over 1%"):
        source[3]


def test_images_known_to_be_bad_are_told_at_the_start(folder):
    (folder / "val" / "cat" / "gone.jpg").symlink_to("nowhere")
    with pytest.raises(UserError, match="it is a link that leads nowhere"):
        open_source(config(folder), "train")
    assert len(open_source(config(folder, bad_images="skip"), "val")) == 83
