"""A run in an object store whose renames are not atomic, cut at every change to it."""

import jax
import numpy as np
import pytest

from tests.conftest import SMALL, run
from tests.fake_store import FakeStore, register
from tests.training.test_checkpoint import flip, meta, state
from vit.errors import UserError
from vit.training.checkpoint import Checkpoints
from vit.training.storage import MANIFEST, open_folder

SMALL = [*SMALL, "--keep=2"]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(FakeStore, "root", tmp_path / "store")
    monkeypatch.setattr(FakeStore, "changes", 0)
    monkeypatch.setattr(FakeStore, "die_at", None)
    register()
    return tmp_path / "store" / "bucket" / "run" / "checkpoints"


def opened():
    return Checkpoints(open_folder("gs://bucket/run") / "checkpoints", keep=2)


def save(checkpoints, step, scores=None):
    checkpoints.save(step, state(step), meta(step, scores))
    checkpoints.wait()


def test_what_is_restored_is_bitwise_what_was_saved(store):
    with opened() as checkpoints:
        assert checkpoints.newest() is None
        for step in (3, 4, 10):
            save(checkpoints, step)
        assert checkpoints.steps() == [4, 10]
        assert sorted(p.name for p in store.iterdir() if any(p.rglob("*.json"))) == ["10", "4"]
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(10, state()), state(10))


def test_damage_is_found_and_kept_aside(store):
    with opened() as checkpoints:
        for step in (1, 2):
            save(checkpoints, step)
        flip(store / "2" / "meta.json")
        found = checkpoints.newest()
        assert (found.step, found.damaged) == (1, {2: "meta.json was changed"})
        assert checkpoints.sweep(found.damaged) == [
            "checkpoint 2 is damaged (meta.json was changed): kept aside as checkpoints/2.damaged"
        ]
        assert (store / "2.damaged" / "meta.json").is_file()
        (store / "1" / MANIFEST).unlink()
        with pytest.raises(UserError, match="no checkpoint of this run is whole"):
            checkpoints.newest()


def test_stores_that_cannot_be_reached(tmp_path):
    _, err = run("train.py", *SMALL, "--workdir=gs://bucket/run", code=2, cwd=tmp_path)
    assert "at: gs://bucket/run" in err
    with pytest.raises(UserError, match="this address can't be opened"):
        open_folder("what://x/y")
