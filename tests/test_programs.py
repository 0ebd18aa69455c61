"""The programs as a user runs them, kills and signals included."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from orbax.checkpoint import StandardCheckpointer
from sklearn.metrics import balanced_accuracy_score, log_loss, top_k_accuracy_score

from tests.conftest import REPO, SMALL, colours, program_environment, run, start
from vit.data.sources import Digits
from vit.errors import UserError
from vit.training.checkpoint import Checkpoints
from vit.training.evaluate import open_run
from vit.training.log import read_metrics


def final_state(workdir):
    """Every array of the last checkpoint, by path."""
    with Checkpoints(workdir / "checkpoints") as checkpoints, StandardCheckpointer() as reader:
        found = checkpoints.newest()
        return found.step, reader.restore(checkpoints.folder / str(found.step) / "state")


def assert_same_state(a, b):
    assert a[0] == b[0]
    assert jax.tree.structure(a[1]) == jax.tree.structure(b[1])
    jax.tree.map(np.testing.assert_array_equal, a[1], b[1])


@pytest.fixture
def copied(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def three_lines(err):
    lines = err.strip().splitlines()
    assert len(lines) == 3, err
    assert [line.split(":")[0].strip() for line in lines] == ["error", "at", "fix"]
    return err


PICTURES = [
    "curves.png", "labels.png", "train_batch.png", "val_predictions.png", "confusion.png", "top_losses.png",
    "calibration.png", "attention.png",
]  # fmt: skip


def test_what_a_run_leaves(trained):
    files = {p.name for p in trained.iterdir() if not p.name.startswith((".", "events"))}
    assert files == {
        "config.json", "environment.json", "metrics.jsonl", "checkpoints", "eval.json", "predictions.npz", *PICTURES,
        "report.html",
    }  # fmt: skip
    assert list(trained.glob("events.out.tfevents*"))
    assert json.loads((trained / "config.json").read_text())["model"]["width"] == 16
    rows = read_metrics(trained / "metrics.jsonl")
    assert [r["step"] for r in rows if r["split"] == "train"] == [2, 4, 6, 8, 10, 12]
    assert [r["step"] for r in rows if r["split"] == "val"] == [4, 8, 12]
    train = next(r for r in rows if r["split"] == "train")
    assert train.keys() >= {"step", "split", "loss", "lr", "grad_norm", "images_per_s", "data_wait", "skipped"}
    assert 0 < train["mfu"] < 1
    assert train["peak_memory"] > 1e8
    assert train["flops_per_s"] > 0
    meta = Checkpoints(trained / "checkpoints").verify(12)
    assert meta["data"]["class_names"] == list("0123456789")
    assert meta["preprocessing"]["image_size"] == [8, 8]
    assert {"jax", "flax", "optax", "vit"} <= meta["versions"].keys()
    assert meta["config"]["steps"] == 12


def test_pictures_are_not_blank(trained):
    from matplotlib.image import imread

    for name in PICTURES:
        picture = imread(trained / name)[..., :3]
        assert picture.std() > 0.05, name
        assert colours(picture) > 30, name


@pytest.mark.parametrize("split", ["test", "train"])
def test_evaluation_counts_everything_and_scikit_learn_agrees(copied, split):
    out, _ = run("eval.py", "--workdir", copied, "--split", split, forked=split == "train")
    figures = json.loads((copied / "eval.json").read_text())
    with np.load(copied / "predictions.npz") as saved:
        probabilities, labels, ids = saved["probabilities"], saved["labels"], saved["example_ids"]
    source = Digits(split)
    np.testing.assert_array_equal(np.sort(ids), np.sort(source.ids))
    np.testing.assert_array_equal(labels, source.labels)
    assert (figures["task"], figures["dataset"], figures["split"]) == ("classification", "digits", split)
    assert (figures["examples"], figures["step"]) == (len(source), 12)
    assert figures["top1"] == np.mean(probabilities.argmax(axis=1) == labels)
    assert figures["top5"] == pytest.approx(top_k_accuracy_score(labels, probabilities, k=5))
    assert figures["nll"] == pytest.approx(log_loss(labels, probabilities))
    assert figures["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, probabilities.argmax(axis=1)))
    assert set(figures["per_class_accuracy"]) == set("0123456789")
    low, high = figures["top1_ci95"]
    assert low < figures["top1"] < high
    assert "top-1" in out


def test_evaluating_best_last_and_a_step(trained, copied):
    rows = read_metrics(trained / "metrics.jsonl")
    scores = {r["step"]: (r["top1"], -r["nll"]) for r in rows if r["split"] == "val"}
    first, best = Checkpoints(trained / "checkpoints").steps()[0], max(scores, key=scores.get)
    for wanted, step in (("last", 12), ("best", best), (str(first), first)):
        assert open_run(trained, wanted).step == step
    with pytest.raises(UserError, match=f"give last, best, or one of {first}"):
        open_run(trained, "5")
    run("eval.py", "--workdir", copied, "--split", "val", "--checkpoint", "best")
    figures = json.loads((copied / "eval.json").read_text())
    assert (figures["step"], figures["top1"]) == (best, scores[best][0])
    os.truncate(copied / "checkpoints" / str(best) / "meta.json", 10)
    other = open_run(copied, "best")
    assert other.step in scores.keys() - {best}
    assert other.warnings == [f"checkpoint {best} is damaged (meta.json was changed)"]


def test_evaluation_passes_over_a_damaged_checkpoint_and_says_so(copied):
    os.truncate(copied / "checkpoints" / "12" / "meta.json", 10)
    _, err = run("eval.py", "--workdir", copied)
    assert "warning: checkpoint 12 is damaged (meta.json was changed); step 9 is used" in err
    assert json.loads((copied / "eval.json").read_text())["step"] == 9
    assert (copied / "checkpoints" / "12").is_dir()


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["--workdir", "nowhere"], "there is no trained model here"),
        ([], "--workdir is missing"),
        (["--workdr", "x"], "did you mean --workdir?"),
        (["--workdir", "x", "--split", "all"], "--split can't be 'all'"),
    ],
)
def test_mistakes_of_evaluation(tmp_path, args, what):
    assert what in three_lines(run("eval.py", *args, code=2, cwd=tmp_path)[1])


def test_a_mistyped_flag_is_refused_before_jax_is_imported(tmp_path):
    script = "import sys, runpy; sys.argv = ['train.py', '--lr', '3']\n"
    script += "try: runpy.run_path('train.py', run_name='__main__')\nfinally: print('jax' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (2, "False\n")
    three_lines(process.stderr)


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["--model.patch=3"], "patches of 3x3 don't tile an image of 8x8"),
        (["--data.mean", "0.1", "0.1", "--data.std", "0.1", "0.1"], "have 2 values, the images 1 channels"),
        (["--workdir=/dev/null/x"], "the run's folder can't be written"),
    ],
)
def test_mistakes_of_training(tmp_path, args, what):
    _, err = run("train.py", *SMALL, *args, code=2, cwd=tmp_path)
    assert what in three_lines(err)


def test_rerunning_a_finished_run_trains_nothing_and_more_steps_resume(copied):
    before = final_state(copied)
    out, _ = run("train.py", *SMALL, f"--workdir={copied}")
    assert f"resuming {copied} from step 12" in out
    assert "compiling" not in out
    assert_same_state(final_state(copied), before)
    out, _ = run("train.py", *SMALL, f"--workdir={copied}", "--steps=15")
    assert f"resuming {copied} from step 12" in out
    assert final_state(copied)[0] == 15


def test_a_resume_that_would_be_another_run_is_refused(copied):
    before = (copied / "config.json").read_bytes()
    _, err = run("train.py", *SMALL, f"--workdir={copied}", "--seed=1", code=2)
    assert "--seed was 0 when this run began and is 1 now" in three_lines(err)
    assert (copied / "config.json").read_bytes() == before


def test_a_run_whose_checkpoints_are_gone_is_not_begun_afresh(copied):
    shutil.rmtree(copied / "checkpoints")
    _, err = run("train.py", *SMALL, f"--workdir={copied}", code=2)
    assert "a run was begun here, but its checkpoints are gone" in three_lines(err)


def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(copied):
    before = final_state(copied)
    data = next(p for p in (copied / "checkpoints" / "12" / "state").rglob("*") if p.stat().st_size > 5000 and p.is_file())
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    out, _ = run("train.py", *SMALL, f"--workdir={copied}")
    assert "checkpoint 12 is damaged" in out
    assert "kept aside as checkpoints/12.damaged" in out
    assert f"resuming {copied} from step 9" in out
    assert (copied / "checkpoints" / "12.damaged").is_dir()
    assert_same_state(final_state(copied), before)


def wait_for(path, process, text=""):
    """Until a file is there (and holds a text), or the process has ended."""
    while process.poll() is None and not (path.exists() and (not text or text in path.read_text(errors="replace"))):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.005)


# tests/heavy kills at many more places.
def test_kill_9_and_reruns_end_bitwise_as_if_nothing_had_happened(trained, tmp_path):
    workdir = tmp_path / "run"
    command = [*SMALL, f"--workdir={workdir}"]
    process = start("train.py", *command, forked=False)
    wait_for(workdir / "metrics.jsonl", process, f'"step": {random.choice([2, 4, 6])}')
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    for _ in range(3):
        process = start("train.py", *command)
        _, err = process.communicate(timeout=300)
        if process.returncode == 0:
            break
    assert process.returncode == 0, err
    assert_same_state(final_state(workdir), final_state(trained))
    rows = read_metrics(workdir / "metrics.jsonl")
    assert [(r["step"], r["split"]) for r in rows] == [(r["step"], r["split"]) for r in read_metrics(trained / "metrics.jsonl")]
    assert not list((workdir / "checkpoints").glob("tmp-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_with_75(trained, tmp_path, number):
    workdir = tmp_path / "run"
    command = [*SMALL, f"--workdir={workdir}"]
    process = start("train.py", *command, forked=number == signal.SIGTERM)
    wait_for(workdir / "checkpoints" / "0", process)  # then it compiles
    process.send_signal(number)
    begin = time.monotonic()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert time.monotonic() - begin < 60
    assert "and saved; run the same command to go on" in err
    step = final_state(workdir)[0]
    assert f"stopped at step {step} " in err
    left = {p.name for p in workdir.iterdir()}
    assert "report.html" in left
    # The curves need a logged line, the others a step: before it there is nothing to draw but the data.
    assert step == 0 or left.issuperset({*PICTURES} - {"curves.png"})
    if number == signal.SIGINT:
        return  # going on is the same for both
    out, _ = run("train.py", *command)
    assert f"from step {step}" in out
    assert_same_state(final_state(workdir), final_state(trained))


def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    # Minutes of C without the interpreter lock, as a compilation is: only the watching thread can answer.
    script = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1]); from vit.training.stop import Stop; Stop.listen()\n"
        "print('ready', flush=True); hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(REPO)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    for _ in range(50):  # signals sent too close together become one
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
            break
    assert process.wait(timeout=30) == 75
    process.stdout.close()


def test_two_trainers_in_one_folder_are_refused(tmp_path):
    workdir = tmp_path / "run"
    first = start("train.py", *SMALL, f"--workdir={workdir}", "--steps=100000")
    wait_for(workdir / "checkpoints" / "0", first)
    _, err = run("train.py", *SMALL, f"--workdir={workdir}", code=2)
    assert "another process is training in this folder" in three_lines(err)
    first.kill()
    first.communicate()


def test_nothing_is_compiled_after_the_first_step(tmp_path):
    """Over the end of an epoch, and over validations whose last batch isn't full."""
    env = {**program_environment(), "JAX_LOG_COMPILES": "1"}
    flags = ("--batch-size=20", "--steps=70", "--eval-every=30", "--save-every=70")
    _, err = run("train.py", *SMALL, *flags, f"--workdir={tmp_path / 'run'}", env=env, forked=False)
    compiled = re.findall(r"Compiling jit\((\S+?)\)", err)
    assert compiled.count("train_step") == 1
    assert compiled.count("eval_step") == 2  # one in training, and one of the finished run
