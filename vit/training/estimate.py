"""What a run will need of devices that may not be here: memory, traffic and time of a step, the batch that fits, the disk.

The step is compiled for the devices as training compiles it, but for augmentation, and XLA tells its memory; nothing is run.
For TPUs that takes libtpu (`tpu-plan`), and no TPU. Times are those of the roofline: estimates, never measurements.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from vit.config import AugmentConfig, Config, FolderData, TfdsData
from vit.data.augment import make_prepare, preprocessing
from vit.data.sources import describe, open_source
from vit.errors import UserError
from vit.tasks import make_task
from vit.training.hardware import CHIPS, GIB, Chip
from vit.training.hosts import from_primary
from vit.training.log import matmul_speed
from vit.training.optim import image_size
from vit.training.sharding import by_example, check_batch_size, make_mesh, rows_of, state_shardings
from vit.training.state import make_train_step, state_shapes

KNOWN = {"cifar10": (10, 32), "cifar100": (100, 32), "imagenet2012": (1000, 224)}  # classes, side of images that aren't cropped
ASSUMED_MFU = 0.5
TRIALS = 6  # batches, each half of the one before, until none is said to fit


class Step(NamedTuple):
    """A compiled step, per device: bytes at the most, those of the state, bytes moved in memory, bytes sent to others."""

    memory: int
    state: int
    moved: float
    sent: float


def topology(name: str) -> list[Any]:
    """The devices of a topology: "cpu" or "" for those here, "v5e:4x4" for a slice of TPUs. Raises `UserError`."""
    if name in ("", "cpu"):
        return jax.devices()
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no machine to ask what it is
    from jax.experimental import topologies

    where = f"--topology {name}"
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("this needs libtpu", where, "uv run --extra tpu-plan vit estimate …")
    try:
        with _silent():
            return list(topologies.get_topology_desc(name, platform="tpu").devices)
    except (RuntimeError, ValueError) as error:
        what = f"libtpu doesn't make it: {str(error).splitlines()[0]:.100}"
        raise UserError(what, where, "give cpu, or a slice as v5e:4x4, v6e:2x2, v5p:2x2x1, v4:2x2x1") from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """libtpu, which misses its TPU, writes past Python to the process's stderr."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def described(config: Config) -> tuple[dict[str, Any], dict[str, np.ndarray], str]:
    """The data set in the words of `describe`, an example as training has it, and what had to be assumed for want of it."""
    try:
        source = open_source(config.data, "train")
        example = {name: np.asarray(x) for name, x in source.drawn(0, random.Random(0)).items()}
        return describe(source), example, ""
    except UserError:
        data: Any = config.data
        if not isinstance(data, TfdsData | FolderData) or (Path(data.dir).expanduser() / getattr(data, "name", "")).exists():
            raise
    classes, side = KNOWN.get(getattr(config.data, "name", ""), (1000, 224))
    side = data.size or side
    told = {"dataset": "data that isn't here", "class_names": list(map(str, range(classes)))}
    told |= {"image_size": [side, side], "channels": 3}
    example = {"image": np.zeros((side, side, 3), np.uint8), "label": np.int32(0), "id": np.int32(0)}
    return (
        told,
        {name: np.asarray(x) for name, x in example.items()},
        f"{classes:,} classes at {side}x{side}: the data isn't here",
    )


def compiled(config: Config, task: Any, example: dict[str, np.ndarray], mesh: Mesh) -> Step:
    """The training step for these devices. Raises `MemoryError(bytes)` if the compiler says that it doesn't fit."""
    like = state_shardings(state_shapes(task, config), mesh, config.fsdp)
    shapes = {name: ((config.batch_size, *x.shape), x.dtype) for name, x in {**example, "mask": np.bool_(True)}.items()}
    batch = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=by_example(mesh)) for name, (shape, dtype) in shapes.items()}
    step: Any = make_train_step(task, make_prepare(config.data, AugmentConfig()), config, like)
    try:
        with _silent():
            program = step.lower(like, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            used = re.search(r"Used ([\d.]+)([KMG]) of", str(error))
            raise MemoryError(float(used[1]) * 1024 ** " KMG".index(used[2]) if used else float("inf")) from error
        raise
    plan, cost = program.memory_analysis(), program.cost_analysis() or {}
    most = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes + plan.temp_size_in_bytes
    state = sum(x.dtype.itemsize * np.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(like))
    moved = config.accumulate * cost.get("bytes accessed", 0.0)  # XLA counts a loop's inside once
    return Step(most, int(state), moved, sent(program.as_text()))


def sent(program: str) -> float:
    """Bytes that a device sends in collectives, of a compiled program: rings, and loops as often as they turn."""
    computations = dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+) [^\n]*\{\n(.*?)^\}", program, re.M | re.S))
    entry = re.search(r"^ENTRY %?([\w.-]+)", program, re.M)
    pattern = r"= (\(?.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("

    def of(name: str) -> float:
        total = 0.0
        for line in computations.get(name, "").splitlines():
            if found := re.search(pattern, line):
                total += _traffic(found[1], found[2], line)
            called = re.findall(r"(?:body|calls|to_apply|(?:true|false)_computation)=%?([\w.-]+)", line)
            called += re.findall(r"[\w.-]+", "".join(re.findall(r"branch_computations=\{(.*?)\}", line)))
            for inner in called:
                turns = re.search(r'known_trip_count":\{"n":"(\d+)"', line) if "body=" in line else None
                # A TPU's reduce-scatter is written as a fusion around an all-reduce, of whose two rounds it takes one.
                share = 0.5 if inner.startswith("all-reduce-scatter") else 1
                total += share * of(inner) * (int(turns[1]) if turns else 1)
        return total

    return of(entry[1]) if entry else 0.0


WIDTH = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8}


def _traffic(result: str, kind: str, line: str) -> float:
    """Bytes that each of a ring of n devices sends for one collective with this result."""
    shapes = re.findall(r"(\w+)\[([\d,]*)\]", result)
    sizes = [WIDTH.get(dtype, 4) * float(np.prod([int(n) for n in dims.split(",") if n])) for dtype, dims in shapes]
    if "-start(" in line and kind != "all-reduce":  # operands beside results, and counters
        sizes = [size for size, (dtype, dims) in zip(sizes, shapes, strict=True) if dims or dtype not in ("u32", "s32")]
        sizes = sizes[len(sizes) // 2 :]
    n = _group(line)
    share = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1.0, "collective-permute": 1.0}.get(kind, (n - 1) / n)
    return share * sum(sizes) if n > 1 else 0.0


def _group(line: str) -> int:
    """How many devices take part in a collective, of the three ways in which XLA writes it."""
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return int(np.prod([int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2])]))
    found = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    return found[1].count(",") + 1 if found else 2  # pairs of a permutation


def largest_batch(compile_for: Callable[[int], float], batch: int, unit: int, room: float) -> int:
    """The largest batch that fits into `room` bytes a device, a multiple of `unit`; 0 if none that was tried does.

    `compile_for` gives the bytes of a batch, infinite if the compiler refuses. Memory grows evenly with the batch: two sizes
    tell where the room ends, and what is told has been compiled.
    """
    tried = {batch: compile_for(batch)}
    while tried[batch] > room:
        batch = batch // 2 // unit * unit
        if batch < unit or len(tried) == TRIALS:
            return 0
        tried[batch] = compile_for(batch)
    tried[2 * batch] = compile_for(2 * batch)
    growth = (tried[2 * batch] - tried[batch]) / batch
    if 0 < growth < float("inf"):
        guess = batch + (room - tried[batch]) / growth
        for size in (int(share * guess) // unit * unit for share in (1, 0.95)):
            if size > batch:
                tried[size] = compile_for(size)
            if tried.get(size, 0.0) <= room:
                break
    return max(size for size, used in tried.items() if used <= room)


def room_of(devices: list[Any]) -> tuple[Chip, str]:
    """What one of these devices can do (0: not known), and where that is from. Of those here JAX says what memory it takes."""
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        here = jax.local_device_count()
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Chip(1e9 * matmul_speed() / here, memory / here, 0.0, 0.0), "a float32 matmul measured just now"
    chip = CHIPS.get(kind, Chip(0.0, float("inf"), 0.0, 0.0))
    limit = (devices[0].memory_stats() or {}).get("bytes_limit", chip.memory) if devices[0] in jax.devices() else chip.memory
    return chip._replace(memory=limit), "the data sheet, 16-bit"


def estimate(config: Config, devices: list[Any]) -> list[str]:
    """Lines on what the run will need of these devices. Raises `UserError` if it can't be asked."""
    mesh = make_mesh(devices, config.tensor)
    check_batch_size(config.batch_size, config.accumulate, mesh)
    numbers, source = from_primary(lambda: [*room_of(devices)])  # the same for all: each compiles the same batches
    chip = Chip(*numbers)
    data, example, assumed = described(config)
    task = make_task(config.task, config.model, data)
    preprocessing(config.data, data)
    state = state_shapes(task, config)
    parameters = sum(x.size for x in state["params"].values())
    saved = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    once, B, n = task.flops(), config.batch_size, mesh.size
    fitting: dict[int, Step] = {}

    @functools.cache
    def compile_for(batch: int) -> float:
        print(f"compiling for a batch of {batch:,} …", file=sys.stderr, flush=True)
        try:
            fitting[batch] = compiled(dataclasses.replace(config, batch_size=batch), task, example, mesh)
        except MemoryError as error:
            return max(error.args[0], 1.001 * chip.memory)
        return fitting[batch].memory

    most = largest_batch(compile_for, B, rows_of(mesh) * config.accumulate, chip.memory)
    step = fitting.get(B)
    sides = [image_size(config.schedule, i, 100) for i in range(100)]  # the run's, in its hundredths
    mean = sum(task.flops(side) for side in sides) / len(sides)
    kept = (config.keep + 2) * saved / 1e6
    spread = "FSDP" if config.fsdp else "a copy of the state on each"
    side = "x".join(map(str, data["image_size"]))
    return [
        *([f"assumed: {assumed}"] if assumed else []),
        f"model: {parameters:,} parameters, {once / 1e9:.4g} GFLOPs an image of {side}, {3 * once / 1e9:.4g} to train all",
        f"devices: {n} × {devices[0].device_kind}, {spread}, --tensor {config.tensor}",
        _memory(step, B, chip),
        f"largest batch that fits: {most:,}" if most else "largest batch that fits: none of those tried",
        *(_times(step, (4 if config.model.remat else 3) * once * B / n, n, chip) if step and chip.flops else []),
        _speed(3 * mean, B, config.steps, n * chip.flops) if chip.flops else "speed: nothing is known of these devices",
        f"disk: {saved / 1e6:,.1f} MB a checkpoint, {kept:,.0f} MB for the {config.keep} newest, the best and one in writing",
        f"(estimates: {chip.flops / 1e12:.4g} TFLOP/s a device, {source}; work spread evenly, collectives in rings)",
    ]


def _memory(step: Step | None, batch: int, chip: Chip) -> str:
    room = f"{chip.memory / GIB:.4g} GiB"
    if step is None:
        return f"memory: batch {batch:,} does NOT fit into {room} a device"
    fits = "fits" if step.memory <= chip.memory else "does NOT fit"
    parts = f"{step.memory / GIB:.2f} GiB a device at batch {batch:,}, {step.state / GIB:.2f} of it the state"
    return f"memory: {parts}: {fits} into {room}"


def _times(step: Step, flops: float, n: int, chip: Chip) -> list[str]:
    """Collectives, and the seconds that a step can't do without, by what they are spent on."""
    times = {"compute": flops / chip.flops}
    times |= {"memory": step.moved / chip.bandwidth} if chip.bandwidth else {}
    times |= {"links": step.sent / chip.links} if chip.links and n > 1 else {}
    bound = max(times, key=lambda name: times[name])
    parts = ", ".join(f"{name} {1e3 * x:.3g} ms" for name, x in times.items())
    share = times["compute"] / (times["compute"] + times.get("links", 0.0))
    return [
        f"collectives: {step.sent / 1e6:,.1f} MB sent by each device a step",
        f"roofline: {1e3 * times[bound]:.3g} ms a step, bound by {bound} ({parts}); {share:.0%} compute, else links",
    ]


def _speed(flops: float, batch: int, steps: int, peak: float) -> str:
    speed = ASSUMED_MFU * peak / flops
    return f"at {ASSUMED_MFU:.0%} MFU: {speed:,.0f} images/s, {steps * batch / speed / 3600:.3g} h for {steps:,} steps"
