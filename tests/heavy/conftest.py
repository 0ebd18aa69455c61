"""The run that tests/heavy kills and stops."""

import time

import pytest

from tests.conftest import SMALL, run

COMMAND = [*SMALL, "--steps=1500", "--save-every=50", "--eval-every=100"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody disturbs, and the seconds that it takes."""
    workdir, begin = tmp_path_factory.mktemp("whole") / "run", time.monotonic()
    run("train.py", *COMMAND, f"--workdir={workdir}")
    return workdir, time.monotonic() - begin
