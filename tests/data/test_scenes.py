"""Composed scenes: what the issue promises of them, and nothing of another split's digits in any."""

import numpy as np
import pytest

from vit.config import ScenesData
from vit.data.scenes import MOST, OVERLAP, SIDE, SIDES, Scenes, scene
from vit.data.sources import Digits, describe, open_source

INK = {split: Digits(split).images[..., 0].astype(np.float32) / 255 for split in ("train", "val", "test")}
LABELS = {split: Digits(split).labels for split in INK}


def made(split="train", seed=0, index=0):
    return scene(INK[split], LABELS[split], seed, index)


@pytest.mark.parametrize("seed", [0, 7])
def test_a_scene_is_what_it_says(seed):
    numbers = set()
    for index in range(150):
        s = made(seed=seed, index=index)
        numbers.add(len(s.boxes))
        assert s.image.shape == (SIDE, SIDE, 3)
        assert s.image.dtype == np.uint8
        assert len(s.digits) == len(s.boxes) <= MOST
        boxes = np.round(s.boxes * SIDE).astype(int)
        for number, (box, digit) in enumerate(zip(boxes, s.digits, strict=True), 1):
            own = s.instance == number
            rows, columns = np.nonzero(own)
            assert set(s.label[own]) <= {digit + 1}
            if number == len(boxes):  # nothing covers the last
                assert (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1) == tuple(box)
            elif len(rows):
                assert np.all((rows >= box[0]) & (rows < box[2]) & (columns >= box[1]) & (columns < box[3]))
            assert max(box[2:] - box[:2]) <= SIDES[1]
            for other in boxes[: number - 1]:
                low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
                shared = np.prod(np.maximum(high - low, 0))
                assert shared <= OVERLAP * min(np.prod(b[2:] - b[:2]) for b in (box, other))
        assert np.array_equal(s.label > 0, s.instance > 0)
    assert numbers == set(range(1, MOST + 1))


def test_seed_and_index_decide_a_scene():
    for a, b in zip(made(seed=3, index=5), made(seed=3, index=5), strict=True):
        assert np.array_equal(a, b)
    assert not np.array_equal(made(seed=3, index=5).image, made(seed=3, index=6).image)
    assert not np.array_equal(made(seed=3, index=5).image, made(seed=4, index=5).image)


def test_a_split_is_of_its_own_digits_and_scenes():
    config = ScenesData(scenes=20)
    sources = {split: open_source(config, split) for split in INK}
    assert {split: len(source) for split, source in sources.items()} == {"train": 20, "val": 200, "test": 500}
    for i, split in enumerate(INK):
        assert np.array_equal(sources[split][3]["image"], made(split, i, 3).image)
        assert np.array_equal(sources[split][3]["label"], made(split, i, 3).label)
    with pytest.raises(IndexError):
        sources["train"][20]


def test_what_a_task_is_told():
    told = describe(Scenes(ScenesData(scenes=2), "train"))
    assert told["class_names"] == ["background", *"0123456789"]
    assert (told["image_size"], told["channels"], told["view"]) == ([96, 96], 3, "whole")
