"""Two processes on this machine train one model, as two hosts would."""

import json
import shutil
import signal
import socket
import time

import numpy as np
import pytest

from tests.conftest import SMALL, program_environment, run, start
from tests.test_programs import final_state
from vit.training.log import read_metrics


def start_two(workdir, *args, alone=False):
    """Start both; the second has a disk of its own if `alone`: only the first one's folder is the run's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    common = {**program_environment(), "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    folders = workdir, workdir.parent / "other" if alone else workdir
    return [
        start("train.py", *SMALL, *args, f"--workdir={folder}", env={**common, "JAX_PROCESS_ID": str(i)})
        for i, folder in enumerate(folders)
    ]


def ended(processes, codes):
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == codes, outputs
    return outputs


def wait_for_step(workdir, step, processes):
    while not any(row["step"] >= step for row in read_metrics(workdir / "metrics.jsonl")):
        assert all(process.poll() is None for process in processes), [p.communicate() for p in processes]
        time.sleep(0.02)


def losses(workdir):
    return {(r["step"], r["split"]): r["loss"] for r in read_metrics(workdir / "metrics.jsonl")}


def assert_same_losses(got, wanted):
    assert got.keys() == wanted.keys()
    np.testing.assert_allclose(list(got.values()), list(wanted.values()), rtol=1e-5)


def test_two_processes_train_as_one(trained, tmp_path):
    outputs = ended(start_two(tmp_path / "run", alone=True), [0, 0])
    assert "2 × cpu" in outputs[0][0]
    assert "step" not in outputs[1][0]  # the second says nothing
    assert not (tmp_path / "other").exists()
    assert_same_losses(losses(tmp_path / "run"), losses(trained))
    with np.load(tmp_path / "run" / "predictions.npz") as got, np.load(trained / "predictions.npz") as wanted:
        np.testing.assert_array_equal(got["example_ids"], wanted["example_ids"])
        np.testing.assert_array_equal(got["labels"], wanted["labels"])
        np.testing.assert_allclose(got["probabilities"], wanted["probabilities"], atol=1e-5)
    # One process goes on with what two began, the parameters now spread or not.
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    run("train.py", *SMALL, f"--workdir={tmp_path / 'run'}", "--steps=14")
    ended(start_two(tmp_path / "copy", "--steps=14", "--fsdp"), [0, 0])
    assert_same_losses(losses(tmp_path / "copy"), losses(tmp_path / "run"))


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_other_says_so_and_the_rerun_resumes(tmp_path, victim):
    workdir, long = tmp_path / "run", ("--steps=200", "--save-every=4")
    processes = start_two(workdir, *long)
    wait_for_step(workdir, 20, processes)
    processes[victim].kill()
    _, err = ended(processes, [-signal.SIGKILL if i == victim else 75 for i in range(2)])[1 - victim]
    assert err.strip().splitlines()[-3:] == [
        "error: another process of this run has ended",
        "   at: the network",
        "  fix: see its log; the same commands on all hosts then resume",
    ]
    outputs = ended(start_two(workdir, *long), [0, 0])
    assert f"resuming {workdir} from step " in outputs[0][0]
    run("train.py", *SMALL, *long, f"--workdir={tmp_path / 'whole'}")
    assert_same_losses(losses(workdir), losses(tmp_path / "whole"))


@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_stops_both_at_the_same_step(tmp_path, told):
    workdir = tmp_path / "run"
    processes = start_two(workdir, "--steps=5000")
    wait_for_step(workdir, 20, processes)
    processes[told].send_signal(signal.SIGTERM)
    outputs = ended(processes, [75, 75])
    step, _ = final_state(workdir)
    for _, err in outputs:
        assert f"stopped at step {step} and saved" in err


def test_a_mistake_on_one_host_ends_both(tmp_path):
    (tmp_path / "file").write_text("")
    processes = start_two(tmp_path / "file" / "run", alone=False)
    outputs = ended(processes, [2, 75])
    assert "the run's folder can't be written" in outputs[0][1]
    assert "another process of this run has ended" in outputs[1][1]


def test_hosts_that_cannot_be_found(tmp_path):
    _, err = run("train.py", *SMALL, "--distributed", f"--workdir={tmp_path / 'run'}", code=2)
    assert "the other processes can't be found" in err
    assert err.splitlines()[-1].startswith("  fix: set JAX_COORDINATOR_ADDRESS")


def test_one_process_may_be_distributed_as_well(trained, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}
    run("train.py", *SMALL, f"--workdir={tmp_path / 'run'}", env={**program_environment(), **told})
    assert json.loads((tmp_path / "run" / "eval.json").read_text()) == json.loads((trained / "eval.json").read_text())
