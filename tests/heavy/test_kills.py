"""Random kills, one after the other, of a short run: it ends bitwise as if nothing had happened."""

import random
import signal
import subprocess
import time

import pytest

from tests.conftest import SMALL, run, start
from tests.test_programs import assert_same_state, final_state

COMMAND = [*SMALL, "--steps=1500", "--save-every=50", "--eval-every=100"]
STOPS = 7


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody disturbs, and the seconds that it takes with all compilations cached."""
    for name in ("cold", "warm"):
        workdir, begin = tmp_path_factory.mktemp(name) / "run", time.monotonic()
        run("train.py", *COMMAND, f"--workdir={workdir}")
    return workdir, time.monotonic() - begin


@pytest.mark.parametrize("kind", ["kill -9", "SIGTERM", "both"])
def test_stopped_again_and_again(whole, tmp_path, kind):
    undisturbed, seconds = whole
    rng, stops, rounds = random.Random(kind), 0, 0
    print(f"\n{kind}:", end=" ")
    while stops < STOPS:  # a round is one run from the start to the end, with as many stops as it meets
        rounds += 1
        workdir, code = tmp_path / str(rounds), None
        while code != 0:
            process = start("train.py", *COMMAND, f"--workdir={workdir}")
            number = signal.SIGKILL if kind == "kill -9" or (kind == "both" and rng.random() < 0.5) else signal.SIGTERM
            if stops < STOPS:
                try:
                    process.wait(timeout=rng.uniform(0.3, 0.9 * seconds))
                except subprocess.TimeoutExpired:
                    process.send_signal(number)
                    stops += 1
            _, err = process.communicate(timeout=300)
            code = process.returncode
            # Before Python has come as far as to listen, SIGTERM simply ends it.
            assert code in (0, 75, -number), err
            steps = [p.name for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal()]
            print(f"{code} at {max(map(int, steps), default='the start')},", end=" ", flush=True)
        assert_same_state(final_state(workdir), final_state(undisturbed))
    print(f"{stops} stops in {rounds} runs")
