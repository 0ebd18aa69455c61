"""A trace of some updates (`--profile N`), and the table of what took their time."""

import collections
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

from vit.training.hosts import primary
from vit.training.storage import is_remote, write_atomically

AFTER = 3  # updates before the first that is traced
SHOWN = 30  # lines of the table


def with_every_kernel(count: int) -> None:
    """Before JAX looks for devices: a run of which `count` updates are to be traced starts a GPU's kernels one by one.

    XLA puts them together into graphs of CUDA's, and a trace has one line for hundreds of operations.
    """
    if count:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_command_buffer=".strip()


class Profile:
    """Traces `count` updates of a run, from the third after its start on; then `profile.json` is in its folder.

    The trace itself is beside it in `trace/`, for TensorBoard or xprof; of a run in an object store it isn't kept.
    """

    def __init__(self, workdir: Path, count: int, step: int):
        self.workdir, self.count, self.first = workdir, count if primary() else 0, step + AFTER
        self.kept = not is_remote(workdir)
        self.folder = workdir / "trace" if self.kept or not self.count else Path(tempfile.mkdtemp(prefix="vit-"))
        self.tracing = self.done = False

    def before(self, step: int, state: Any) -> None:
        """To be called before update `step`, counted from 0: begins the trace when it's time."""
        if self.count and step >= self.first and not (self.tracing or self.done):
            jax.block_until_ready(state)
            self.first, self.tracing = step, True
            jax.profiler.start_trace(str(self.folder))

    def after(self, step: int, state: Any, program: Callable[[], str]) -> str:
        """To be called after it; `program` gives the compiled step as text. What to tell when the trace is done, else ""."""
        if not self.tracing or step + 1 < self.first + self.count:
            return ""
        jax.block_until_ready(state)
        self.end()
        found = sorted(self.folder.rglob("*.xplane.pb"))[-1]
        rows = top_operations(events(jax.profiler.ProfileData.from_file(str(found))), program(), self.count)
        write_atomically(self.workdir / "profile.json", json.dumps({"steps": self.count, "operations": rows}, indent=1) + "\n")
        if not self.kept:
            shutil.rmtree(self.folder)
        return (
            f"traced {self.count} updates: {rows[0]['share']:.0%} is {rows[0]['operation']}" if rows else "the trace is empty"
        )

    def end(self) -> str:
        """No more tracing: the trace is whole, or training ended before; then that is to be told."""
        early = self.count and not self.done
        if self.tracing:
            jax.profiler.stop_trace()
        self.tracing, self.done = False, True
        return f"training ended before {self.count} updates were traced" if early else ""


def program(step: Any, *args: Any) -> str:
    """A jitted function as it was compiled for these arguments."""
    return step.lower(*args).compile().as_text()


def events(trace: Any) -> Iterable[tuple[str, float]]:
    """Instruction and nanoseconds of what ran of a training step on the devices; on a CPU, on XLA's threads."""
    for plane in trace.planes:
        for line in plane.lines:
            if line.name == "XLA Ops" or line.name.startswith(("tf_XLA", "Stream")):
                for event in line.events:
                    # A GPU's kernels have names of their own.
                    told = dict(event.stats) if line.name.startswith("Stream") else {}
                    if "train_step" in str(told.get("hlo_module", "train_step")):
                        yield str(told.get("hlo_op", event.name)), event.duration_ns


def top_operations(seen: Iterable[tuple[str, float]], program: str, steps: int) -> list[dict[str, Any]]:
    """The operations that took most, the same ones of all blocks together: share of the time, ms and calls a step."""
    names = operation_names(program)
    total: dict[str, float] = collections.defaultdict(float)
    calls: dict[str, int] = collections.defaultdict(int)
    for event, nanoseconds in seen:
        instruction = event.removeprefix("%").partition(" = ")[0]
        if instruction in names:  # else a wrapper of others
            total[names[instruction]] += nanoseconds
            calls[names[instruction]] += 1
    whole = sum(total.values())
    return [
        {"operation": name, "share": x / whole, "ms": round(x / steps / 1e6, 3), "calls": round(calls[name] / steps, 1)}
        for name, x in sorted(total.items(), key=lambda item: -item[1])[:SHOWN]
    ]


WRAPPERS = r"(jit|jvp|vmap|transpose|while|checkpoint|body)\(|\)|jit_?\w*/|cond/\w+/"  # JAX's, around what a layer does


def operation_names(program: str) -> dict[str, str]:
    """Instruction of a compiled program → what it does where, as "blocks/*/attn dot_general f32[8192,128], backward"."""
    names = {}
    for line in program.splitlines():
        if match := re.match(r"\s*(?:ROOT )?%?([\w.-]+) = (\(?\w+\[[\d,]*\])?.*? ([\w-]+)\(", line):
            instruction, shape, kind = match.groups()
            if kind in ("while", "conditional", "call"):  # their insides are counted
                continue
            path = re.search(r'op_name="([^"]*)"', line)
            told = re.sub(WRAPPERS, "", path[1]) if path else kind
            told = re.sub(r"blocks/\d+", "blocks/*", told.removeprefix("train_step/")).strip("/")
            names[instruction] = f"{told} {shape or ''}".strip() + (", backward" if path and "transpose(" in path[1] else "")
    return names
