"""Whether going on makes sense, field by field."""

import dataclasses

import pytest

from vit.config import SGD, Config, ViTConfig, to_json
from vit.errors import UserError
from vit.training.checkpoint import Found
from vit.training.workdir import check_resumable, locked, versions

BEGUN = Config(steps=50)
FOUND = Found(12, {"config": to_json(BEGUN)}, {})


def test_more_or_fewer_steps_to_come_are_fine(tmp_path):
    for steps in (12, 50, 5000):
        check_resumable(dataclasses.replace(BEGUN, steps=steps, workdir="elsewhere", keep=9), tmp_path, FOUND)


@pytest.mark.parametrize(
    ("change", "what", "fix"),
    [
        ({"seed": 1}, "--seed was 0 when this run began and is 1 now", "keep --seed 0, or"),
        ({"batch_size": 64, "seed": 1}, "--batch-size was 128 when this run began and is 64 now (and --seed)", "keep"),
        ({"optim": SGD(lr=1e-3, weight_decay=0.05)}, "--optim was AdamW when this run began and is SGD now", "take"),
        ({"model": ViTConfig(depth=3)}, "--model.depth was 12 when this run began and is 3 now", "keep --model.depth 12"),
        ({"steps": 5}, "--steps 5 is behind this run, which is at step 12", "give --steps 12 or more"),
    ],
)
def test_another_run_is_refused(tmp_path, change, what, fix):
    with pytest.raises(UserError) as caught:
        check_resumable(dataclasses.replace(BEGUN, **change), tmp_path, FOUND)
    assert caught.value.what == what
    assert caught.value.fix.startswith(fix)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_afresh(tmp_path):
    check_resumable(BEGUN, tmp_path, None)
    (tmp_path / "metrics.jsonl").write_text("")
    check_resumable(BEGUN, tmp_path, None)
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "split": "train"}\n')
    with pytest.raises(UserError, match="its checkpoints are gone"):
        check_resumable(BEGUN, tmp_path, None)


def test_the_lock_goes_with_its_holder(tmp_path):
    with locked(tmp_path / "run"), pytest.raises(UserError, match="another process"), locked(tmp_path / "run"):
        pass
    with locked(tmp_path / "run"):
        pass


def test_versions_travel():
    assert versions()["jax"].count(".") >= 2
