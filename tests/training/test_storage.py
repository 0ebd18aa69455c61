"""A run in an object store whose renames are not atomic, cut at every change to it."""

import contextlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.conftest import REPO, SMALL, program_environment, run
from tests.fake_store import Died, FakeStore, register
from tests.test_programs import final_state
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


@pytest.mark.parametrize("again", [False, True])
def test_cut_at_every_change(store, again):
    """Saving 3 removes 1; saving 2 again with another score replaces it."""
    step, scores = (2, {"2": [1.0]}) if again else (3, None)
    with opened() as checkpoints:
        save(checkpoints, 1)
        save(checkpoints, 2)
    before, cut, died = store.parent / "before", 0, True
    shutil.copytree(store, before)
    while died:
        shutil.rmtree(store)
        shutil.copytree(before, store)
        with opened() as checkpoints:
            FakeStore.changes, FakeStore.die_at, died = 0, cut, True
            with contextlib.suppress(Died):
                save(checkpoints, step, scores)
                died = False
            FakeStore.die_at = None
        with opened() as checkpoints:
            checkpoints.recover()
            found = checkpoints.newest()
            assert found.step in {2, step}
            assert found.damaged == {}, cut
            checkpoints.sweep(found.damaged)
            jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(found.step, state()), state(found.step))
            save(checkpoints, 5)
            assert checkpoints.newest().step == 5
        cut += 1
    assert cut > 20


def test_a_whole_run_in_a_store(trained, tmp_path):
    environment = {**program_environment(), "FAKE_STORE": str(tmp_path), "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-m", "tests.fake_store"]

    def program(*args):
        done = subprocess.run([*command, *args], env=environment, cwd=REPO, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    program("train.py", *SMALL, "--workdir=gs://bucket/run")
    ours = tmp_path / "bucket" / "run"
    assert {p.name for p in ours.iterdir()} >= {
        p.name for p in trained.iterdir() if p.name[0] != "." and p.name[:6] != "events"
    }
    assert list(ours.glob("events.out.tfevents*"))
    jax.tree.map(np.testing.assert_array_equal, final_state(ours)[1], final_state(trained)[1])
    out = program("train.py", *SMALL, "--workdir=gs://bucket/run", "--steps=13")
    assert "resuming gs://bucket/run from step 12" in out
    assert "step 13" in program("eval.py", "--workdir=gs://bucket/run")


def test_stores_that_cannot_be_reached(tmp_path):
    _, err = run("train.py", *SMALL, "--workdir=gs://bucket/run", code=2, cwd=tmp_path)
    assert "at: gs://bucket/run" in err
    with pytest.raises(UserError, match="this address can't be opened"):
        open_folder("what://x/y")
