"""What the host does beside the device: dispatching a step, handing over a batch, importing, compiling.

    uv run python benchmarks/host.py [--compile]

Prints JSON: milliseconds that the call of a 12-block step keeps Python (the model is so small that the device is done first);
milliseconds of a batch of 128 resident CIFAR-sized images, from the arrays to the device; `import vit` with what it offers
against `import jax, flax, optax`; with --compile the seconds from a built S/16 to its first step's end at 224 px, twice with
one cache.
"""

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vit.config import AugmentConfig, Config, TfdsData, ViTConfig
from vit.data.augment import make_prepare
from vit.data.batches import Batches
from vit.tasks import make_task
from vit.training.sharding import distribute, make_mesh, place, state_shardings
from vit.training.state import init_state, make_train_step, state_shapes


def step_of(model: ViTConfig, side: int, batch: int) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """A jitted step as train.py makes it, its state, and a batch."""
    config = Config(model=model, batch_size=batch, data=TfdsData())
    data = {"dataset": "made up", "class_names": list("abcdefghij"), "image_size": [side, side], "channels": 3}
    task, mesh = make_task(config.task, config.model, data), make_mesh()
    like = state_shardings(state_shapes(task, config), mesh, False)
    step = make_train_step(task, make_prepare(config.data, AugmentConfig()), config, like)
    images, ids = np.zeros((batch, side, side, 3), np.uint8), np.arange(batch, dtype=np.int32)
    made = {"image": images, "label": ids % 10, "id": ids, "mask": np.ones(batch, bool)}
    return step, distribute(init_state(task.build, config), like), made


def milliseconds(work: Callable[[], Any], repeats: int = 50) -> float:
    """The median of so many calls."""
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return round(1e3 * statistics.median(taken), 3)


def dispatch() -> float:
    """Of a 12-block step, done with before the next is called."""
    step, state, made = step_of(ViTConfig(patch=4, width=8, depth=12, heads=1, mlp=8), 8, 4)
    placed = place(made, make_mesh())
    state, _ = step(state, placed)
    taken = []
    for _ in range(50):
        jax.block_until_ready(state)
        begin = time.perf_counter()
        state, _ = step(state, placed)
        taken.append(time.perf_counter() - begin)
    return round(1e3 * statistics.median(taken), 3)


class Resident:
    """A split as CIFAR-10's, in memory."""

    drawn_anew = False

    def __init__(self) -> None:
        self.images = np.random.default_rng(0).integers(0, 256, (5000, 32, 32, 3)).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": self.images[i], "label": np.int32(i % 10), "id": np.int32(i)}


def handing_over() -> float:
    """Of a batch of 128, once every example has been seen."""
    source: Any = Resident()
    stream, mesh = Batches(source, 0, 128).starting_at(0), make_mesh()
    for _ in itertools.islice(stream, 45):
        pass
    return milliseconds(lambda: jax.block_until_ready(place(next(stream), mesh)))


def importing(what: str) -> float:
    """Seconds of a fresh interpreter."""
    taken = []
    for _ in range(5):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {what}"], check=True)
        taken.append(time.perf_counter() - begin)
    return round(statistics.median(taken), 2)


def first_step() -> float:
    """Seconds from a built S/16 to the end of its first step at 224 px."""
    step, state, made = step_of(ViTConfig.variant("S/16"), 224, 8)
    begin = time.perf_counter()
    jax.block_until_ready(step(state, place(made, make_mesh())))
    return round(time.perf_counter() - begin, 1)


def main(args: list[str]) -> None:
    """Measure."""
    if args == ["--first-step"]:
        print(first_step())
        return
    offered = "vit; vit.create, vit.load, vit.attention"
    found: dict[str, Any] = {"dispatch_ms": dispatch(), "batch_ms": handing_over()}
    found["import_s"] = {what: importing(what) for what in ("jax, flax, optax", "vit", offered)}
    if args == ["--compile"]:
        with tempfile.TemporaryDirectory() as folder:
            command = ["env", f"JAX_COMPILATION_CACHE_DIR={folder}", sys.executable, __file__, "--first-step"]
            runs = [float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(2)]
        found["first_step_s"] = dict(zip(("compiled", "from the cache"), runs, strict=True))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
