"""A batch depends on (seed, index) alone; an evaluation sees every example once."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit.data.batches import Batches, once


class Numbers:
    """Example i is the number i."""

    name = "numbers"
    class_names = ("even", "odd")

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        image = np.full((2, 2, 1), i % 256, np.uint8)
        return {"image": image, "label": np.int32(i % 2), "id": np.int32(i)}

    drawn_anew = False

    def drawn(self, i, rng):
        return self[i]


def ids(batches, start, count):
    return [batch["id"] for batch in islice(batches.starting_at(start), count)]


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 70), st.integers(0, 2**32 - 1), st.integers(0, 30))
def test_starting_anywhere_gives_what_starting_at_zero_gives(length, size, seed, start):
    batches = Batches(Numbers(length), seed, size)
    np.testing.assert_array_equal(ids(batches, 0, start + 3)[start:], ids(batches, start, 3))


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_every_epoch_shows_every_example_once_in_another_order(length, size, seed):
    count = -(-3 * length // size)
    stream = np.concatenate(ids(Batches(Numbers(length), seed, size), 0, count))
    epochs = stream[: 3 * length].reshape(3, length)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(length), (3, 1)))
    if length > 12:
        assert (epochs[0] != epochs[1]).any()
        other = np.concatenate(ids(Batches(Numbers(length), seed ^ 1, size), 0, count))
        assert (stream != other).any()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.sampled_from([1, 2, 4]), st.integers(1, 8), st.integers(0, 9), st.booleans())
def test_the_parts_of_several_processes_make_the_batch(length, parts, size, start, stream):
    source, whole = Numbers(length), size * parts
    together = ids(Batches(source, 5, whole), start, 3)
    apart = [ids(Batches(source, 5, whole, (p, parts), stream), start, 3) for p in range(parts)]
    for step in range(3):
        np.testing.assert_array_equal(np.concatenate([a[step] for a in apart]), together[step])


def test_streamed_batches_are_the_resident_ones():
    source = Numbers(37)
    resident, streamed = Batches(source, 3, 16), Batches(source, 3, 16, stream=True)
    for a, b in zip(islice(resident.starting_at(4), 12), islice(streamed.starting_at(4), 12), strict=True):
        assert a.keys() == b.keys() == {"image", "label", "id", "mask"}
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])


@given(st.integers(1, 60), st.integers(1, 20), st.sampled_from([1, 2, 3]))
def test_evaluation_counts_every_example_once(length, size, parts):
    seen = []
    for part in range(parts):
        batches = list(once(Numbers(length), size * parts, (part, parts)))
        assert {b["image"].shape for b in batches} == {(size, 2, 2, 1)}
        seen += [i for b in batches for i in b["id"][b["mask"]]]
    assert sorted(seen) == list(range(length))


@pytest.mark.parametrize("stream", [False, True])
def test_images_and_labels_stay_together(stream):
    for batch in islice(Batches(Numbers(37), 0, 8, stream=stream).starting_at(0), 6):
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["id"] % 256)
        np.testing.assert_array_equal(batch["label"], batch["id"] % 2)
