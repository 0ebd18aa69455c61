"""Disks that fill up, folders that become read-only or vanish under a run: told at once, the last good checkpoint intact."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.conftest import REPO, SMALL, program_environment, run, start
from tests.test_programs import three_lines, wait_for
from vit.training.checkpoint import Checkpoints

LONG = [*SMALL, "--steps=1000000", "--save-every=50", "--eval-every=1000000", "--log-every=50"]


def with_mounts(script, folder):
    """Run a shell script that may mount in a name space of its own; its output and code."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(folder), sys.executable]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command[:4], "mount", "-t", "tmpfs", "none", "/mnt"], check=False, capture_output=True).returncode
    ):
        pytest.skip("this system doesn't let a test mount a file system of its own")
    environment = {**program_environment(), "TRAIN": f"train.py {' '.join(LONG)} --workdir {folder}/run"}
    return subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("room", [800, 950])
def test_a_full_disk(tmp_path, room):
    script = f"""
        mount -t tmpfs -o size={room}k none "$1" || exit 9
        "$2" -W error $TRAIN >/dev/null; echo "exit $?"
        "$2" -m vit info "$1/run"
        mount -o remount,size=50m "$1"
        step=$(ls "$1/run/checkpoints" | grep -x '[0-9]*' | sort -n | tail -1)
        "$2" -W error $TRAIN --steps $((step + 3)) | grep -E 'resuming|the run is in'
    """
    done = with_mounts(script, tmp_path)
    assert "exit 2" in done.stdout, done
    assert "No space left on device" in three_lines(done.stderr), done
    checkpoints = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    assert checkpoints
    assert all("whole" in line for line in checkpoints)
    last = checkpoints[-1].split()[1].rstrip(":")
    assert f"resuming {tmp_path}/run from step {last}" in done.stdout
    assert "the run is in" in done.stdout


def test_a_folder_that_becomes_read_only(tmp_path):
    script = """
        "$2" -W error $TRAIN >/dev/null & train=$!
        until [ -e "$1/run/checkpoints/50" ]; do sleep 0.02; kill -0 $train || exit 9; done
        mount --bind "$1/run/checkpoints" "$1/run/checkpoints" || exit 9
        # Refused as busy while a file in it is open for writing.
        until mount -o remount,bind,ro "$1/run/checkpoints" 2>"$1/busy"; do kill -0 $train || exit 9; done
        wait $train; echo "exit $?"
    """
    done = with_mounts(script, tmp_path)
    assert "exit 2" in done.stdout, done
    err = three_lines(done.stderr)
    assert "could not be written" in err
    assert "Read-only file system" in err
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        found = checkpoints.newest()
    assert found.step >= 50
    assert found.damaged == {}


@pytest.mark.parametrize("what", ["checkpoints", "."])
def test_a_folder_that_vanishes(tmp_path, what):
    workdir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    process = start("train.py", *LONG, f"--workdir={workdir}")
    wait_for(workdir / "checkpoints" / "50", process)
    (workdir / what).rename(elsewhere)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "could not be written" in three_lines(err)
    assert str(workdir / "checkpoints") in err
    assert not (workdir / "checkpoints").exists()
    with Checkpoints(elsewhere / "checkpoints" if what == "." else elsewhere) as checkpoints:
        assert checkpoints.newest().step >= 50


def test_all_checkpoints_damaged(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("*/meta.json"):
        path.write_text(json.dumps({}))
    for program in (["train.py", *SMALL], ["eval.py"]):
        _, err = run(*program, f"--workdir={tmp_path / 'run'}", code=2)
        assert "no checkpoint of this run is whole" in three_lines(err)
