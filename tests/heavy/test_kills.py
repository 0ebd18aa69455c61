"""Random kills, one after the other, of a short run: it ends bitwise as if nothing had happened."""

import random
import signal
import subprocess
import time

import pytest

from tests.conftest import SMALL, run, start
from tests.test_programs import assert_same_state, final_state

COMMAND = [*SMALL, "--steps=400", "--save-every=20", "--eval-every=50"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody disturbs, and the seconds that it takes."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    begin = time.monotonic()
    run("train.py", *COMMAND, f"--workdir={workdir}")
    return workdir, time.monotonic() - begin


@pytest.mark.parametrize("kind", ["kill -9", "SIGTERM", "both"])
def test_stopped_again_and_again(whole, tmp_path, kind):
    workdir, seconds = whole
    rng, stops = random.Random(kind), 0
    print(f"{kind}: ", end="")
    for _ in range(8):
        process = start("train.py", *COMMAND, f"--workdir={tmp_path / 'run'}")
        number = signal.SIGKILL if kind == "kill -9" or (kind == "both" and rng.random() < 0.5) else signal.SIGTERM
        try:
            process.wait(timeout=rng.uniform(0.2, 1.1) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            stops += 1
        _, err = process.communicate(timeout=120)
        # Before Python has come as far as to listen, SIGTERM simply ends it.
        assert process.returncode in (0, 75, -number), err
        print(process.returncode, end=" ", flush=True)
    run("train.py", *COMMAND, f"--workdir={tmp_path / 'run'}")
    print(f"{stops} stops")
    assert_same_state(final_state(tmp_path / "run"), final_state(workdir))
