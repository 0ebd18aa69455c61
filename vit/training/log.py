"""What a run tells: the console with its progress bar, metrics.jsonl, TensorBoard. The primary process only."""

import contextlib
import json
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from vit.training.hardware import peak_memory
from vit.training.hosts import primary
from vit.training.storage import is_remote, write_atomically


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that a kill cut short is left out."""
    rows = []
    for line in path.read_bytes().decode(errors="replace").splitlines() if path.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int) and "split" in row:
                rows.append(row)
    return rows


@dataclass
class Meter:
    """What the updates since the last line of the log amount to; FLOPs are counted as if all parameters were trained."""

    limit: float = 0.0  # FLOP/s that the devices can do; 0: not known
    images: int = 0
    flops: float = 0.0
    waited: float = 0.0
    begin: float = field(default_factory=time.perf_counter)
    seen: list[dict[str, float]] = field(default_factory=list)

    def speed(self) -> dict[str, float]:
        """Images and the model's FLOPs a second, these as a share of the limit, and the share of time that the host waited."""
        elapsed = max(time.perf_counter() - self.begin, 1e-9)
        flops = self.flops / elapsed
        used = flops / self.limit if self.limit else math.nan
        wait = min(1.0, self.waited / elapsed)
        return {"images_per_s": self.images / elapsed, "flops_per_s": flops, "mfu": used, "data_wait": wait}

    def figures(self) -> dict[str, float]:
        """Means over the updates made; the learning rate is the last."""
        if not self.seen:
            return {}
        means = {}
        for name in ("loss", "grad_norm"):
            finite = [m[name] for m in self.seen if math.isfinite(m[name])]
            means[name] = sum(finite) / len(finite) if finite else math.nan
        speed = self.speed() if self.images else dict.fromkeys(self.speed(), math.nan)
        return {
            **means,
            "lr": self.seen[-1]["lr"],
            "skipped": sum(m["streak"] > 0 for m in self.seen),
            **speed,
            "peak_memory": peak_memory(),
        }


class Log:
    """The log of a run from `step` on.

    Lines of metrics.jsonl beyond `step` were written by a run that was killed before its next checkpoint: those steps
    are about to run again, so their lines go.
    """

    def __init__(self, workdir: Path, step: int, steps: int):
        self.console = Console(quiet=not primary(), highlight=False, soft_wrap=True)
        self.steps, self.best = steps, ""
        self.bar: Progress | None = None
        if primary():
            from tensorboardX.record_writer import RecordWriter  # SummaryWriter's thread meets a full disk where nobody listens

            self.workdir = workdir
            # Nothing can be appended to a file in an object store: write here and send it there now and then.
            self.here = Path(tempfile.mkdtemp(prefix="vit-")) if is_remote(workdir) else workdir
            kept = [row for row in read_metrics(workdir / "metrics.jsonl") if row["step"] <= step]
            write_atomically(self.here / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
            self.file = (self.here / "metrics.jsonl").open("a")
            name = f"events.out.tfevents.{time.time():.0f}.{platform.node()}.{os.getpid()}"
            self.events = RecordWriter(str(self.here / name))
            self._event(0, file_version="brain.Event:2")
            self._event(step + 1, session_log={"status": 1})  # TensorBoard forgets what a killed run wrote beyond

    def say(self, message: str) -> None:
        """A line on the console."""
        self.console.print(message, markup=False)

    def metrics(self, step: int, split: str, figures: dict[str, Any]) -> None:
        """A line in metrics.jsonl and points in TensorBoard. What isn't finite becomes null."""
        if not primary():
            return
        row = {"step": step, "split": split, **{name: _plain(x) for name, x in figures.items()}}
        self.file.write(json.dumps(row, allow_nan=False) + "\n")
        self.file.flush()
        values = [{"tag": f"{split}/{name}", "simple_value": x} for name, x in row.items() if isinstance(x, float)]
        self._event(step, summary={"value": values})

    def _event(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

        self.events.write(Event(wall_time=time.time(), step=step, **content).SerializeToString())
        self.events.flush()

    def flush(self) -> None:
        """What was logged is where the run is, so that it outlives this machine."""
        if primary() and self.here != self.workdir:
            for path in self.here.iterdir():
                write_atomically(self.workdir / path.name, path.read_bytes())

    def progress(self, step: int, images_per_s: float, data_wait: float, **_: float) -> None:
        """Move the bar. Off a terminal there's no bar; the lines at each evaluation tell how far it is."""
        if self.bar is None:
            texts = ("{task.fields[speed]}", "ETA", "{task.fields[best]}")
            speed, eta, best = (TextColumn(text) for text in texts)
            columns = (BarColumn(bar_width=12), MofNCompleteColumn(), speed, eta, TimeRemainingColumn(compact=True), best)
            self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
            self.task = self.bar.add_task("training", total=self.steps, completed=step, speed="", best="")
            self.bar.start()
        speed = f"{images_per_s:,.0f} images/s, {data_wait:.0%} data wait"
        self.bar.update(self.task, completed=step, speed=speed, best=self.best)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        if primary():
            self.file.close()
            self.events.close()
            self.flush()
            if self.here != self.workdir:
                shutil.rmtree(self.here)


def matmul_speed() -> float:
    """GFLOP/s of a float32 matrix product: what this machine can do at this moment, to compare seconds by."""
    n = 1024
    x = jnp.ones((n, n), jnp.float32)
    product = jax.jit(jnp.matmul).lower(x, x).compile()
    seconds = []
    for _ in range(10):
        begin = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - begin)
    return 2 * n**3 / min(seconds) / 1e9


def track(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    """The items, under a progress bar once they take over two seconds."""
    console = Console(stderr=True, quiet=not primary())
    begin = time.monotonic()
    columns = (SpinnerColumn(), TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("ETA"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, visible=False)
        for item in items:
            yield item
            bar.update(task, advance=1, visible=time.monotonic() - begin > 2)


def _plain(x: Any) -> Any:
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    return x
