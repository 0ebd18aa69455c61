"""The loop with a made-up train step: roll-backs, offsets, signals."""

import contextlib
import dataclasses
from itertools import count

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit.config import Config
from vit.errors import Stopped, UserError
from vit.training.checkpoint import Checkpoints
from vit.training.log import Log, read_metrics
from vit.training.loop import Loop, due
from vit.training.sharding import make_mesh
from vit.training.stop import Stop

CONFIG = Config(steps=20, batch_size=4, save_every=4, eval_every=100, log_every=5)


def test_due():
    assert [step for step in range(13) if due(step, 4)] == [4, 8, 12]


class Indices:
    """Batches whose only content is their index."""

    def starting_at(self, index):
        for i in count(index):
            yield {"index": np.full(4, i)}


class Task:
    """Scores that never improve."""

    headline = "top1"

    def score(self, figures):
        return (figures["top1"],)


class Run:
    """A loop over a step that notes the batches it was given and fails on some of them."""

    def __init__(self, folder, config=CONFIG, bad=()):
        self.seen, self.bad, self.folder = [], set(bad), folder
        self.checkpoints = Checkpoints(folder / "checkpoints", config.keep)
        self.stop, self.mesh = Stop(), make_mesh(jax.devices()[:1])
        found = self.checkpoints.newest()
        counters = {name: jnp.zeros((), jnp.int32) for name in ("step", "offset", "skipped", "streak", "rollbacks")}
        state = {"params": {"w": jnp.zeros(())}, "opt": (), "ema": {}, **counters}
        if found:
            state = self.checkpoints.restore(found.step, state)
        self.log = Log(folder, int(state["step"]), config.steps)
        scores = found.meta["scores"] if found else {}
        self.loop = Loop(
            dataclasses.replace(config, workdir=str(folder)),
            state,
            self.step,
            Indices(),
            self.evaluate,
            Task(),
            self.mesh,
            self.checkpoints,
            self.log,
            self.stop,
            {"scores": scores},
        )

    def step(self, state, batch, size):
        index = int(batch["index"][0])
        self.seen.append(index)
        good = index not in self.bad
        streak = 0 if good else int(state["streak"]) + 1
        new = {
            **state,
            "params": {"w": state["params"]["w"] * 3 + index if good else state["params"]["w"]},
            "step": state["step"] + 1,
            "skipped": state["skipped"] + (not good),
            "streak": jnp.asarray(streak, jnp.int32),
        }
        loss = jnp.asarray(1.0 if good else jnp.nan)
        return new, {"loss": loss, "grad_norm": loss, "lr": jnp.asarray(0.1), "streak": new["streak"]}

    def evaluate(self, state):
        if self.stop.asked.is_set():
            raise Stopped("stopped")
        return {"top1": 0.5, "loss": 1.0}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.log.__exit__()
        self.checkpoints.__exit__()


def test_the_batches_in_order(tmp_path):
    with Run(tmp_path) as run:
        state = run.loop.run()
        assert run.seen == list(range(20))
        assert int(state["step"]) == 20
        assert run.checkpoints.steps() == [12, 16, 20]
        rows = read_metrics(tmp_path / "metrics.jsonl")
        assert [r["step"] for r in rows if r["split"] == "train"] == [5, 10, 15, 20]
        assert [r["step"] for r in rows if r["split"] == "val"] == [20]


def test_two_bad_updates_in_a_row_are_only_skipped(tmp_path):
    with Run(tmp_path, bad=(6, 7, 9)) as run:
        state = run.loop.run()
        assert run.seen == list(range(20))
        assert (int(state["skipped"]), int(state["rollbacks"]), int(state["offset"])) == (3, 0, 0)
        assert sum(r.get("skipped", 0) for r in read_metrics(tmp_path / "metrics.jsonl") if r["split"] == "train") == 3


def test_three_bad_updates_roll_back_and_step_over_their_batches(tmp_path):
    with Run(tmp_path, bad=(9, 10, 11)) as run:
        state = run.loop.run()
        # Checkpoint 8 is the last before; one update beyond the third bad one may have been under way.
        assert run.seen[:12] == list(range(12))
        assert run.seen[-12:] == list(range(12, 24))
        assert (int(state["step"]), int(state["offset"]), int(state["rollbacks"]), int(state["skipped"])) == (20, 4, 1, 3)
        w = 0
        for index in [*range(8), *range(12, 24)]:
            w = np.float32(w) * np.float32(3) + np.float32(index)
        assert float(state["params"]["w"]) == w
        events = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["split"] == "event"]
        assert [(e["step"], e["rolled_back_to"]) for e in events] == [(12, 8)]


def test_before_the_first_checkpoint_the_start_is_good_enough(tmp_path):
    with Run(tmp_path, bad=(0, 1, 2)) as run:
        state = run.loop.run()
        assert run.seen[-20:] == list(range(3, 23))
        assert int(state["offset"]) == 3


def test_three_roll_backs_end_the_run(tmp_path):
    with Run(tmp_path, bad=range(5, 1000)) as run:
        with pytest.raises(UserError, match="3 updates in a row were not finite, 3 times by step 7"):
            run.loop.run()
        assert run.checkpoints.newest().step == 4


def test_three_bad_updates_at_the_very_end_are_not_overlooked(tmp_path):
    with Run(tmp_path, bad=(17, 18, 19)) as run:
        state = run.loop.run()
        assert run.seen[-4:] == list(range(20, 24))
        assert int(state["rollbacks"]) == 1


@pytest.mark.parametrize("stop_after", [1, 4, 5, 13, 20])
def test_a_signal_saves_and_the_rerun_goes_on_where_it_was(tmp_path, stop_after):
    whole, folder = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    folder.mkdir()
    with Run(whole) as run:
        wanted = run.loop.run()
    with Run(folder) as run:
        step = run.step

        def stepping(*args):
            if len(run.seen) + 1 == stop_after:
                run.stop.asked.set()
            return step(*args)

        run.loop.train_step = stepping
        with pytest.raises(Stopped, match=f"stopped at step {stop_after} and saved"):
            run.loop.run()
        assert run.checkpoints.newest().step == stop_after
    with Run(folder) as run:
        state = run.loop.run()
        assert run.seen == list(range(stop_after, 20))
        assert float(state["params"]["w"]) == float(wanted["params"]["w"])
        # However it was cut, the last checkpoint knows the last score.
        assert "20" in run.checkpoints.newest().meta["scores"]
        rows = [(r["step"], r["split"]) for r in read_metrics(folder / "metrics.jsonl")]
        assert len(rows) == len(set(rows))


def test_consecutive_resumes_see_every_batch_once(tmp_path):
    seen = []
    for stop_after in (3, 4, 11, None):
        with Run(tmp_path) as run:
            step = run.step

            def stepping(state, batch, size, run=run, step=step, stop_after=stop_after):
                if int(state["step"]) + 1 == stop_after:
                    run.stop.asked.set()
                return step(state, batch, size)

            run.loop.train_step = stepping
            with contextlib.nullcontext() if stop_after is None else pytest.raises(Stopped):
                run.loop.run()
            seen += run.seen
    assert seen == list(range(20))


def test_a_failed_save_ends_the_run_at_the_next_step(tmp_path, monkeypatch):
    with Run(tmp_path) as run:
        commit = run.checkpoints._commit

        def failing(step, state, meta):
            if step == 4:
                raise UserError("the checkpoint of step 4 could not be written", "x", "y")
            commit(step, state, meta)

        monkeypatch.setattr(run.checkpoints, "_commit", failing)
        with pytest.raises(UserError, match="step 4 could not be written"):
            run.loop.run()
        assert max(run.seen) <= 8


def test_lines_after_the_checkpoint_are_written_anew(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "split": "train"}\n{"step": 10, "split": "train"}\n{"step": 15, "sp')
    with Log(tmp_path, 7, 20):
        pass
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 5, "split": "train"}]
