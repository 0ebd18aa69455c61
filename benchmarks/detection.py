"""What data, matching and NMS are of a training step of the CPU recipe, and what a step of S/16 at 512x512 takes of memory.

    uv run python benchmarks/detection.py                     # times, as shares of the step measured in between
    uv run python benchmarks/detection.py --memory            # two updates of a batch of 2: the process's peak

Prints JSON.
"""

import importlib.util
import json
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit.config import BoxData, Config, DenseHead, DetectionConfig, ViTConfig
from vit.data.augment import make_prepare
from vit.data.boxcrop import jittered, rows
from vit.data.boxforms import Boxes
from vit.models.detector import places
from vit.tasks import make_task
from vit.tasks.dense import assigned, chosen
from vit.training.state import init_state, make_train_step

BOXES, SIDE = 15, 60  # of an image of 480x640, BCCD's


def recipe() -> Config:
    """That of configs/detect_bccd_cpu.py."""
    path = Path(__file__).parent.parent / "configs" / "detect_bccd_cpu.py"
    spec: Any = importlib.util.spec_from_file_location("recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def described(config: Config, classes: int) -> dict[str, Any]:
    """What a source says of itself."""
    data: Any = config.data
    names, size = [str(k) for k in range(classes)], list(data.size)
    return {"dataset": "made up", "class_names": names, "image_size": size, "channels": 3, "view": "padded", "boxes": True}


def pair(rng: np.random.Generator) -> tuple[np.ndarray, Boxes]:
    """An image with boxes."""
    low = rng.uniform(0, 1 - SIDE / 480, (BOXES, 2))
    corners = np.concatenate([low, low + SIDE / np.array([480, 640])], axis=1)
    kinds, crowd = rng.integers(0, 3, BOXES).astype(np.int32), np.zeros(BOXES, bool)
    return rng.integers(0, 256, (480, 640, 3)).astype(np.uint8), Boxes(corners, kinds, crowd, np.zeros(BOXES))


def batch_of(config: Config, pairs: list[Any]) -> dict[str, np.ndarray]:
    """A training batch, drawn as `BoxImages` draws it, by one thread."""
    data: Any = config.data
    examples = []
    for i, each in enumerate(pairs):
        view = jittered(each, data, random.Random(i))
        corners = view.corners / np.tile(data.size, 2)
        examples.append(
            {"image": view.image, **rows(Boxes(corners, view.kinds, view.crowd, np.zeros(len(corners))), data.most)}
        )
    batch = {name: np.stack([example[name] for example in examples]) for name in examples[0] if name != "area"}
    return {**batch, "id": np.arange(len(pairs), dtype=np.int32), "mask": np.ones(len(pairs), bool)}


def times(repeats: int = 10) -> dict[str, Any]:
    """Milliseconds of a step, of its data, of the assignment inside it, and of NMS, alternating."""
    config, rng = recipe(), np.random.default_rng(0)
    task: Any = make_task(config.task, config.model, described(config, 3))
    pairs = [pair(rng) for _ in range(config.batch_size)]
    batch = {name: jnp.asarray(x) for name, x in batch_of(config, pairs).items()}
    step, held = make_train_step(task, make_prepare(config.data, config.augment), config), [init_state(task.build, config)]
    data: Any = config.data
    size, head = data.size, task.head
    where, reach = places(size, head.strides)
    where, reach = where / np.float32(size), reach[:, None] / np.float32(size)
    N = len(where)
    middle, sides = where, rng.uniform(0.05, 0.1, (config.batch_size, N, 2)).astype(np.float32)
    boxes, logits = jnp.concatenate([middle - sides, middle + sides], axis=-1), rng.normal(-3, 2, (config.batch_size, N, 3))
    scores = jax.nn.sigmoid(jnp.asarray(logits, jnp.float32))
    assign = jax.jit(jax.vmap(lambda b, s, t, k, c: assigned(b, s, where, reach, t, k, c, head.assigned)))
    choose = jax.jit(jax.vmap(lambda b, c: chosen(b, c, head.overlap, 100, 100 * head.assigned)))

    def update() -> Any:
        held[0], metrics = step(held[0], batch)
        return metrics

    runs: dict[str, Callable[[], Any]] = {
        "step": update,
        "data": lambda: batch_of(config, pairs),
        "matching": lambda: assign(boxes, scores, batch["boxes"], batch["label"], batch["crowd"]),
        "nms": lambda: choose(boxes, jnp.asarray(logits, jnp.float32)),
    }
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(repeats + 2):
        for name, run in runs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            if i > 1:
                spent[name].append(1e3 * (time.perf_counter() - begin))
    ms = {name: round(statistics.median(x), 2) for name, x in spent.items()}
    share = round((ms["data"] + ms["matching"] + ms["nms"]) / ms["step"], 3)
    return {"ms": ms, "data, matching and NMS over the step": share}


def memory() -> float:
    """GB at the most of a process that makes two updates of S/16 at 512x512, a batch of 2."""
    config = Config(
        task=DetectionConfig(head=DenseHead()), model=ViTConfig.variant("S/16", pool="mean"), data=BoxData(), batch_size=2
    )
    task = make_task(config.task, config.model, described(config, 80))
    step, state = make_train_step(task, make_prepare(config.data, config.augment), config), init_state(task.build, config)
    rng = np.random.default_rng(0)
    for _ in range(2):
        state, metrics = step(state, batch_of(config, [pair(rng) for _ in range(2)]))
    assert np.isfinite(float(metrics["loss"]))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    print(json.dumps({"GB": round(memory(), 2)} if sys.argv[1:] == ["--memory"] else times(), indent=1))
