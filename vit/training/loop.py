"""The loop: what happens after so many updates, signals, updates that failed, and going back."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vit.config import Config
from vit.data.batches import Batches
from vit.errors import Stopped, UserError
from vit.training.checkpoint import Checkpoints
from vit.training.hosts import primary
from vit.training.log import Log, Meter
from vit.training.optim import image_size
from vit.training.profile import Profile, program
from vit.training.sharding import anywhere, distribute, place
from vit.training.state import State
from vit.training.stop import Stop

BAD_IN_A_ROW = 3  # then roll back
ROLL_BACKS = 3  # then give up


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many updates happens after update `step`."""
    return step > 0 and step % every == 0


@dataclass
class Loop:
    """Runs a state to the last step.

    Args:
      config: the run.
      state: at the start, fresh or restored.
      train_step: (state, batch, side that images are shrunk to) → (state, metrics).
      batches: index → training batches.
      evaluate: state → figures on the validation split; raises `Stopped` between batches on a signal.
      task: says which figure is its headline, and what makes one checkpoint better than another.
      mesh, checkpoints, log, stop: see there.
      meta: what goes into every checkpoint beside the state; its "scores" grow with each evaluation.
      limit: FLOP/s that the devices can do, 0 if nobody knows.
      flops: of one image's forward pass, shrunk to this side (0: not at all).
    """

    config: Config
    state: State
    train_step: Callable[[State, dict[str, Any], int], tuple[State, dict[str, jax.Array]]]
    batches: Batches
    evaluate: Callable[[State], dict[str, Any]]
    task: Any
    mesh: Mesh
    checkpoints: Checkpoints
    log: Log
    stop: Stop
    meta: dict[str, Any]
    limit: float = 0.0
    flops: Callable[[int], float] = lambda side: 0.0

    def __post_init__(self) -> None:
        self.step = int(self.state["step"])
        self.stream = self._batches()
        self.meter = Meter(self.limit)
        self.profile = Profile(self.log.workdir if primary() else Path(), self.config.profile, self.step)
        self.compiling, self.told = True, False
        if scores := self.meta["scores"].values():
            self.log.best = f"best {max(scores)[0]:.2%}"
        self.pending: deque[dict[str, jax.Array]] = deque()  # metrics of updates that the device may still be at

    def run(self) -> State:
        """The state after the last step. Raises `Stopped` on a signal, `UserError` if training can't go on."""
        try:
            return self._run()
        finally:
            if told := self.profile.end():
                self.log.say(told)

    def _run(self) -> State:
        config = self.config
        if self.step == 0:  # so that there's always something to go back to
            self.save()
            self.checkpoints.wait()
        while True:
            last = self.step == config.steps
            evaluating = last or due(self.step, config.eval_every)
            saving = last or due(self.step, config.save_every)
            if (evaluating or saving or due(self.step, config.log_every)) and not self.settle():
                continue
            if self.step > 0 and (last or due(self.step, config.log_every)):
                self.log_training()
            if evaluating and str(self.step) not in self.meta["scores"]:
                try:
                    saving |= self.evaluate_and_compare()
                except Stopped:
                    self.interrupted()
            if saving:
                self.save()
            self.checkpoints.check()
            if last:
                break
            if self.told or (jax.process_count() == 1 and self.stop.asked.is_set()):
                self.interrupted()
            if self.compiling:
                self.log.say("compiling…")
            self.update()
        self.checkpoints.wait()
        return self.state

    def update(self) -> None:
        """One update. While the device works on it, look at the one before."""
        begin = time.perf_counter()
        batch = next(self.stream)
        self.meter.waited += time.perf_counter() - begin
        # Chosen here and not by `lax.switch` in the step: XLA's CPU runs what is in a branch on one core, several times slower.
        size = image_size(self.config.schedule, self.step, self.config.steps)
        placed = place(batch, self.mesh)
        self.profile.before(self.step, self.state)
        self.state, metrics = self.train_step(self.state, placed, size)
        traced = time.perf_counter()
        if told := self.profile.after(self.step, self.state, lambda: program(self.train_step, self.state, placed, size)):
            self.log.say(told)
            self.meter.begin += time.perf_counter() - traced  # the training speed leaves the making of the table out
        self.step += 1
        self.meter.images += self.config.batch_size
        self.meter.flops += 3 * self.config.batch_size * self.flops(size)
        if self.compiling:
            jax.block_until_ready(metrics)
            self.compiling = False
            self.log.say(f"first step after {time.perf_counter() - begin:.1f} s")
            self.meter = Meter(self.limit)  # its speed leaves the compilation out
        self.pending.append({**metrics, "stop": anywhere(self.stop.asked.is_set(), self.mesh)})
        if len(self.pending) > 1:
            self.look_at(self.pending.popleft())

    def settle(self) -> bool:
        """Wait for the device; False if that showed a reason to go back, and the state is now an earlier one."""
        before = self.step
        while self.pending:
            self.look_at(self.pending.popleft())
        return self.step == before

    def look_at(self, metrics: dict[str, jax.Array]) -> None:
        """Note an update's metrics; after three bad ones in a row, roll back."""
        seen = {name: float(x) for name, x in metrics.items()}
        self.told |= jax.process_count() > 1 and bool(seen["stop"])  # all see it after the same update
        self.meter.seen.append(seen)
        done = self.step - len(self.pending)
        self.log.progress(done, **self.meter.speed())
        if seen["streak"]:
            self.log.say(f"step {done}: loss {seen['loss']:.3g}, gradient norm {seen['grad_norm']:.3g}: update skipped")
        if seen["streak"] >= BAD_IN_A_ROW:
            self.roll_back(done)

    def roll_back(self, bad: int) -> None:
        """Go back to the newest good checkpoint, and from there on to the batch after update `bad`."""
        self.checkpoints.wait()
        count = int(self.state["rollbacks"]) + 1
        found = self.checkpoints.newest()
        if count >= ROLL_BACKS or found is None:
            what = f"training diverged: {BAD_IN_A_ROW} updates in a row were not finite, {count} times by step {bad}"
            fix = "lower --optim.lr, lengthen --schedule.warmup or set --clip, in a new --workdir; look at the data"
            raise UserError(what, f"{self.config.workdir}, step {bad}", fix)
        offset = int(self.state["offset"]) + bad - found.step
        skipped = int(self.state["skipped"])
        changed = {"offset": offset, "skipped": skipped, "streak": 0, "rollbacks": count}
        changed = {name: distribute(np.int32(x), self.state[name]) for name, x in changed.items()}
        self.state, self.step = self.checkpoints.restore(found.step, self.state) | changed, found.step
        self.pending.clear()
        self.stream = self._batches()
        self.meta["scores"] = {s: score for s, score in self.meta["scores"].items() if int(s) <= self.step}
        for line in self.checkpoints.sweep(found.damaged):
            self.log.say(line)
        self.log.metrics(bad, "event", {"rolled_back_to": found.step, "rollbacks": count, "skipped": skipped})
        self.log.say(f"{BAD_IN_A_ROW} bad updates in a row: back to step {found.step}, past {bad - found.step} batches")

    def _batches(self) -> Iterator[dict[str, np.ndarray]]:
        return self.batches.starting_at(self.step + int(self.state["offset"]))

    def log_training(self) -> None:
        """A line on the updates since the last."""
        if figures := self.meter.figures():
            self.log.metrics(self.step, "train", figures)
        self.meter = Meter(self.limit)

    def evaluate_and_compare(self) -> bool:
        """Evaluate on the validation split; whether this is the best so far."""
        begin = time.perf_counter()
        try:
            figures = self.evaluate(self.state)
        finally:
            self.meter.begin += time.perf_counter() - begin  # the training speed leaves evaluation out
        scores, score = self.meta["scores"], list(self.task.score(figures))
        best = all(score > other for other in scores.values())
        scores[str(self.step)] = score
        self.log.metrics(self.step, "val", figures)
        shown = f"validation {self.task.headline} {figures[self.task.headline]:.2%}"
        if best:
            self.log.best = f"best {figures[self.task.headline]:.2%}"
        self.log.say(f"step {self.step:>6}/{self.config.steps}  {shown}{'  (best)' if best else ''}")
        return best

    def save(self) -> None:
        """Save the state of now in the background."""
        self.log.flush()
        meta = {**self.meta, "step": self.step, "scores": dict(self.meta["scores"])}
        self.checkpoints.save(self.step, self.state, meta)

    def interrupted(self) -> None:
        """Save and raise `Stopped`."""
        self.settle()
        self.save()
        self.checkpoints.wait()
        raise Stopped(f"stopped at step {self.step} and saved; run the same command to go on")
