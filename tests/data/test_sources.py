"""The embedded data set and its committed split."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from vit.config import DigitsData
from vit.data.sources import Digits, describe, open_source


def test_the_split_is_the_documented_one():
    y = load_digits().target
    _, test = train_test_split(np.arange(1797), test_size=360, stratify=y, random_state=0)
    parts = {split: Digits(split) for split in ("train", "val", "test")}
    assert {split: len(source) for split, source in parts.items()} == {"train": 1293, "val": 144, "test": 360}
    np.testing.assert_array_equal(parts["test"].ids, test)
    assert sorted(np.concatenate([source.ids for source in parts.values()])) == list(range(1797))


def test_an_example_is_the_digit_that_its_id_names():
    digits = load_digits()
    source = open_source(DigitsData(), "val")
    for i in range(len(source)):
        example = source[i]
        assert example["label"] == digits.target[example["id"]]
        assert example["image"].dtype == np.uint8
        np.testing.assert_array_equal(np.round(example["image"][..., 0] * (16 / 255)), digits.images[example["id"]])


def test_what_a_source_says_of_itself():
    assert describe(Digits("test")) == {
        "dataset": "digits",
        "class_names": list("0123456789"),
        "image_size": [8, 8],
        "channels": 1,
    }


def test_the_configured_statistics_are_those_of_the_training_images():
    pixels = Digits("train").images / 255
    np.testing.assert_allclose([pixels.mean(), pixels.std()], [DigitsData().mean[0], DigitsData().std[0]], atol=2e-3)
