"""A store whose renames are not atomic, cut at every change to it; and a whole run in it."""

import contextlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.conftest import REPO, program_environment
from tests.conftest import SMALL as SHORT
from tests.fake_store import Died, FakeStore
from tests.test_programs import final_state
from tests.training.test_checkpoint import state
from tests.training.test_storage import opened, save, store  # noqa: F401 - a fixture

SMALL = [*SHORT, "--keep=2"]


@pytest.mark.parametrize("again", [False, True])
def test_cut_at_every_change(store, again):  # noqa: F811
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
