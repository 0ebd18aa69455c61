"""What a run tells: the console with its progress bar, metrics.jsonl, TensorBoard. The primary process only."""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterable
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


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file so that a kill leaves the old or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that a kill cut short is left out."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int) and "split" in row:
                rows.append(row)
    return rows


class Log:
    """The log of a run from `step` on.

    Lines of metrics.jsonl beyond `step` were written by a run that was killed before its next checkpoint: those steps
    are about to run again, so their lines go.
    """

    def __init__(self, workdir: Path, step: int, steps: int):
        self.primary = jax.process_index() == 0
        self.console = Console(quiet=not self.primary, highlight=False, soft_wrap=True)
        self.steps, self.best = steps, ""
        self.bar: Progress | None = None
        if self.primary:
            from tensorboardX import SummaryWriter

            path = workdir / "metrics.jsonl"
            kept = [row for row in read_metrics(path) if row["step"] <= step]
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
            self.file = path.open("a")
            self.events = SummaryWriter(str(workdir), purge_step=step + 1)

    def say(self, message: str) -> None:
        """A line on the console."""
        self.console.print(message, markup=False)

    def metrics(self, step: int, split: str, figures: dict[str, Any]) -> None:
        """A line in metrics.jsonl and points in TensorBoard. What isn't finite becomes null."""
        if not self.primary:
            return
        row = {"step": step, "split": split, **{name: _plain(x) for name, x in figures.items()}}
        self.file.write(json.dumps(row, allow_nan=False) + "\n")
        self.file.flush()
        for name, x in row.items():
            if isinstance(x, float) and name != "step":
                self.events.add_scalar(f"{split}/{name}", x, step)

    def progress(self, step: int, images_per_s: float, data_wait: float) -> None:
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
        if self.primary:
            self.file.close()
            self.events.close()


def matmul_speed() -> float:
    """GFLOP/s of a float32 matrix product: what this machine can do at this moment, to compare seconds by."""
    n = 2048
    x = jnp.ones((n, n), jnp.float32)
    product = jax.jit(jnp.matmul).lower(x, x).compile()
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - begin)
    return 2 * n**3 / min(seconds) / 1e9


def track(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    """The items, under a progress bar once they take over two seconds."""
    console = Console(stderr=True, quiet=jax.process_index() != 0)
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
