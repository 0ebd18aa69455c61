"""Several processes, of which one is killed, stopped, or mistaken; and runs that go on with another number of processes."""

import json
import shutil
import signal
import socket

import numpy as np
import pytest

from tests.conftest import SMALL, program_environment, run
from tests.test_hosts import assert_same_losses, ended, losses, start_several, wait_for_step
from tests.test_programs import PICTURES, assert_same_state, final_state


def test_a_run_goes_on_with_more_or_fewer_processes(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "one")
    shutil.copytree(trained, tmp_path / "two")
    run("train.py", *SMALL, f"--workdir={tmp_path / 'one'}", "--steps=14")
    ended(start_several(tmp_path / "two", "--steps=14", "--fsdp"), [0, 0])
    assert_same_losses(losses(tmp_path / "two"), losses(tmp_path / "one"))
    run("train.py", *SMALL, f"--workdir={tmp_path / 'two'}", "--steps=16")


@pytest.mark.parametrize(("count", "victim"), [(2, 0), (4, 2)])
def test_when_one_is_killed_the_others_say_so_and_the_rerun_resumes(tmp_path, count, victim):
    workdir, long = tmp_path / "run", ("--steps=200", "--save-every=4")
    processes = start_several(workdir, *long, count=count)
    wait_for_step(workdir, 20, processes)
    processes[victim].kill()
    outputs = ended(processes, [-signal.SIGKILL if i == victim else 75 for i in range(count)], timeout=60)
    for err in (err for i, (_, err) in enumerate(outputs) if i != victim):
        assert err.strip().splitlines()[-3:] == [
            "error: another process of this run has ended",
            "   at: the network",
            "  fix: see its log; the same commands on all hosts then resume",
        ]
    outputs = ended(start_several(workdir, *long), [0, 0])  # two go on, also of four
    assert f"resuming {workdir} from step " in outputs[0][0]
    whole = tmp_path / "whole"
    if count == 2:  # bit by bit, where as many processes add up
        ended(start_several(whole, *long), [0, 0])
        assert losses(workdir) == losses(whole)
        assert_same_state(final_state(workdir), final_state(whole))
    else:
        run("train.py", *SMALL, *long, f"--workdir={whole}")
        assert_same_losses(losses(workdir), losses(whole))


@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_stops_both_at_the_same_step(tmp_path, told):
    workdir = tmp_path / "run"
    processes = start_several(workdir, "--steps=5000")
    wait_for_step(workdir, 20, processes)
    processes[told].send_signal(signal.SIGTERM)
    outputs = ended(processes, [75, 75])
    step, _ = final_state(workdir)
    for _, err in outputs:
        assert f"stopped at step {step} and saved" in err
    assert {"report.html", *PICTURES} <= {p.name for p in workdir.iterdir()}


def test_a_mistake_on_one_host_ends_both(tmp_path):
    (tmp_path / "file").write_text("")
    processes = start_several(tmp_path / "file" / "run", alone=False)
    outputs = ended(processes, [2, 75])
    assert "the run's folder can't be written" in outputs[0][1]
    assert "another process of this run has ended" in outputs[1][1]


def test_one_process_may_be_distributed_as_well(trained, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}
    run("train.py", *SMALL, f"--workdir={tmp_path / 'run'}", env={**program_environment(), **told})
    assert json.loads((tmp_path / "run" / "eval.json").read_text()) == json.loads((trained / "eval.json").read_text())


def test_the_plan_of_two_processes_is_told_once(tmp_path):
    outputs = ended(start_several(tmp_path / "run", "--dry-run", "--fsdp", alone=True), [0, 0])
    assert "devices: 2 × cpu, FSDP" in outputs[0][0]
    assert "model: " not in outputs[1][0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("count", [4])
def test_processes_train_as_one(trained, tmp_path, count):
    outputs = ended(start_several(tmp_path / "run", count=count, alone=True), [0] * count)
    assert f"{count} × cpu" in outputs[0][0]
    assert not any("step" in out for out, _ in outputs[1:])  # the others say nothing
    assert not (tmp_path / "other").exists()
    assert_same_losses(losses(tmp_path / "run"), losses(trained))
    with np.load(tmp_path / "run" / "predictions.npz") as got, np.load(trained / "predictions.npz") as wanted:
        np.testing.assert_array_equal(got["example_ids"], wanted["example_ids"])
        np.testing.assert_array_equal(got["labels"], wanted["labels"])
        np.testing.assert_allclose(got["probabilities"], wanted["probabilities"], atol=1e-5)
