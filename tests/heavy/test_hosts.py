"""Two processes, of which one is killed, stopped, or mistaken; and runs that go on with another number of processes."""

import json
import shutil
import signal
import socket

import numpy as np

from tests.conftest import SMALL, program_environment, run
from tests.test_hosts import assert_same_losses, ended, losses, start_two, wait_for_step
from tests.test_programs import PICTURES, final_state
from vit.training.log import read_metrics


def test_a_run_goes_on_with_more_or_fewer_processes(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "one")
    shutil.copytree(trained, tmp_path / "two")
    run("train.py", *SMALL, f"--workdir={tmp_path / 'one'}", "--steps=14")
    ended(start_two(tmp_path / "two", "--steps=14", "--fsdp"), [0, 0])
    assert_same_losses(losses(tmp_path / "two"), losses(tmp_path / "one"))
    run("train.py", *SMALL, f"--workdir={tmp_path / 'two'}", "--steps=16")


LONG = ("--steps=150", "--save-every=4", "--eval-every=25")


def begun(workdir):
    """Both processes of the run, some steps on from where it was."""
    step = max((row["step"] for row in read_metrics(workdir / "metrics.jsonl")), default=0)
    processes = start_two(workdir, *LONG)
    wait_for_step(workdir, step + 8, processes)
    return processes


def kill(victim, workdir):
    """When one is killed, the other says so."""
    processes = begun(workdir)
    processes[victim].kill()
    _, err = ended(processes, [-signal.SIGKILL if i == victim else 75 for i in range(2)])[1 - victim]
    assert err.strip().splitlines()[-3:] == [
        "error: another process of this run has ended",
        "   at: the network",
        "  fix: see its log; the same commands on all hosts then resume",
    ]


def tell(told, workdir):
    """A signal to one stops both at the same step."""
    processes = begun(workdir)
    processes[told].send_signal(signal.SIGTERM)
    outputs = ended(processes, [75, 75])
    step, _ = final_state(workdir)
    for _, err in outputs:
        assert f"stopped at step {step} and saved" in err
    assert {"report.html", *PICTURES} <= {p.name for p in workdir.iterdir()}


def test_killed_and_stopped_in_turn_it_resumes_each_time_and_ends_as_one(tmp_path):
    workdir = tmp_path / "run"
    for strike, number in ((kill, 0), (tell, 0), (kill, 1), (tell, 1)):
        strike(number, workdir)
    outputs = ended(start_two(workdir, *LONG), [0, 0])
    assert f"resuming {workdir} from step " in outputs[0][0]
    run("train.py", *SMALL, *LONG, f"--workdir={tmp_path / 'whole'}")
    assert_same_losses(losses(workdir), losses(tmp_path / "whole"))


def test_a_mistake_on_one_host_ends_both(tmp_path):
    (tmp_path / "file").write_text("")
    processes = start_two(tmp_path / "file" / "run", alone=False)
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
