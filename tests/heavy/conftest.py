"""The run that tests/heavy kills and stops."""

import time

import pytest

from tests.conftest import SMALL, run, shared

COMMAND = [*SMALL, "--steps=600", "--save-every=20", "--eval-every=40"]


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The run that nobody disturbs, and the seconds that it takes from its start on."""

    def make(folder):
        begin = time.monotonic()
        run("train.py", *COMMAND, f"--workdir={folder}", forked=False)
        (folder / "seconds").write_text(str(time.monotonic() - begin))

    folder = shared(tmp_path_factory, "whole", make)
    return folder, float((folder / "seconds").read_text())
