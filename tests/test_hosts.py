"""Processes of one run on this machine, as on hosts of their own: how tests/heavy/test_hosts.py starts and compares them."""

import socket
import time

import numpy as np

from tests.conftest import SMALL, program_environment, run, start
from vit.training.log import read_metrics


def start_several(workdir, *args, count=2, alone=False):
    """Start them; all but the first have a disk of their own if `alone`: only the first one's folder is the run's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    common = {**program_environment(), "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    folders = [workdir, *[workdir.parent / "other" if alone else workdir] * (count - 1)]
    return [
        start("train.py", *SMALL, *args, f"--workdir={folder}", env={**common, "JAX_PROCESS_ID": str(i)})
        for i, folder in enumerate(folders)
    ]


def ended(processes, codes, timeout=300):
    until = time.monotonic() + timeout
    outputs = [process.communicate(timeout=max(0, until - time.monotonic())) for process in processes]
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


def test_hosts_that_cannot_be_found(tmp_path):
    _, err = run("train.py", *SMALL, "--distributed", f"--workdir={tmp_path / 'run'}", code=2)
    assert "the other processes can't be found" in err
    assert err.splitlines()[-1].startswith("  fix: set JAX_COORDINATOR_ADDRESS")
