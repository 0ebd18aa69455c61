"""Other ways to the same model: eight devices, streamed batches; and no way to one."""

import json

import pytest

from tests.conftest import SMALL, program_environment, run
from tests.test_programs import assert_same_state, final_state, three_lines


def test_eight_devices_train_and_one_evaluates(tmp_path):
    workdir = tmp_path / "run"
    eight = {**program_environment(), "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    out, _ = run("train.py", *SMALL, f"--workdir={workdir}", env=eight)
    assert "8 × cpu" in out
    there = json.loads((workdir / "eval.json").read_text())
    run("eval.py", "--workdir", workdir)
    here = json.loads((workdir / "eval.json").read_text())
    assert here["nll"] == pytest.approx(there["nll"], rel=1e-5)


def test_streaming_trains_the_same_model(trained, tmp_path):
    workdir = tmp_path / "run"
    run("train.py", *SMALL, f"--workdir={workdir}", "--data.stream")
    assert_same_state(final_state(workdir), final_state(trained))


def test_training_that_cannot_work_ends_with_a_clear_error(tmp_path):
    _, err = run("train.py", *SMALL, f"--workdir={tmp_path / 'run'}", "--optim.lr=1e38", code=2)
    assert "training diverged: 3 updates in a row were not finite, 3 times" in three_lines(err)
