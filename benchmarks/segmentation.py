"""What a head and its loss cost beside the backbone, and what a training step of S/16 at 512x512 takes of memory.

    uv run python benchmarks/segmentation.py                  # times, as ratios to the backbone measured in between
    uv run python benchmarks/segmentation.py --memory         # one step in a process of its own: its peak, and by tokens

Prints JSON.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit.config import Config, ConvHead, EomtHead, LinearHead, MaskData, SegmentationConfig, ViTConfig
from vit.data.augment import make_prepare
from vit.models.vit import ViT, merge, split
from vit.tasks import make_task
from vit.training.state import init_state, make_train_step

HEADS = {
    "linear": LinearHead(),
    "convolutional": ConvHead(width=64, levels=4, stride=4),
    "eomt": EomtHead(queries=100, blocks=3),
}
CLASSES = [str(k) for k in range(19)]
S16 = ViTConfig.variant("S/16", pool="mean")


def data(side: int) -> dict[str, Any]:
    """What a source of 19 classes says of itself."""
    return {
        "dataset": "made up",
        "class_names": CLASSES,
        "image_size": [side, side],
        "channels": 3,
        "view": "whole",
        "things": None,
    }


def made_up(side: int, count: int) -> dict[str, np.ndarray]:
    """A batch."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 19, (count, side // 16, side // 16)).repeat(16, 1).repeat(16, 2)
    image = rng.integers(0, 256, (count, side, side, 3))
    ids = np.arange(count, dtype=np.int32)
    return {"image": image.astype(np.uint8), "label": label.astype(np.uint8), "id": ids, "mask": np.ones(count, bool)}


def times(side: int = 512, repeats: int = 3) -> dict[str, Any]:
    """Seconds of forward and backward pass of one image: the backbone alone, and with each head and its loss, alternating."""
    batch = {name: jnp.asarray(x[:1]) for name, x in made_up(side, 1).items()}
    batch["image"] = batch["image"] / 255
    backbone, params = split(ViT(S16, image_size=(side, side), channels=3, classes=0, rngs=nnx.Rngs(0)))
    runs = {"backbone": (jax.jit(jax.grad(lambda p: (merge(backbone, p)(batch["image"])[1]["patches"] ** 2).mean())), params)}
    for name, head in HEADS.items():
        task = make_task(SegmentationConfig(head=head), S16, data(side))
        loss = lambda p, task=task: task.loss(merge(task.graph, p), {**batch, "progress": jnp.ones(1)}, None).mean()  # noqa: E731
        runs[name] = jax.jit(jax.grad(loss)), split(task.build(nnx.Rngs(0)))[1]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(repeats + 1):
        for name, (run, params) in runs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run(params))
            if i:
                seconds[name].append(time.perf_counter() - begin)
    middle = {name: statistics.median(x) for name, x in seconds.items()}
    over = {name: round(x / middle["backbone"] - 1, 3) for name, x in middle.items() if name != "backbone"}
    return {"seconds": {name: round(x, 2) for name, x in middle.items()}, "head and loss over backbone": over}


def memory(head: str, side: int, count: int) -> float:
    """GB at the most of a process that makes two updates."""
    config = Config(task=SegmentationConfig(head=HEADS[head]), model=S16, data=MaskData(size=(side, side)), batch_size=count)
    task = make_task(config.task, config.model, data(side))
    step = make_train_step(task, make_prepare(config.data, config.augment), config)
    state = init_state(task.build, config)
    for _ in range(2):
        state, metrics = step(state, made_up(side, count))
    assert np.isfinite(float(metrics["loss"]))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main(args: list[str]) -> None:
    """Times, or memory."""
    if args[:1] == ["--one"]:
        print(memory(args[1], int(args[2]), int(args[3])))
    elif args == ["--memory"]:
        found = {}
        for head, side, count in (
            ("linear", 512, 2),
            ("convolutional", 512, 2),
            ("linear", 512, 1),
            ("linear", 768, 1),
            ("linear", 1024, 1),
        ):
            run = subprocess.run(
                [sys.executable, __file__, "--one", head, str(side), str(count)], capture_output=True, text=True, check=True
            )
            found[f"{head}, {side}x{side}, batch {count}"] = round(float(run.stdout), 2)
        print(json.dumps({"GB": found}, indent=1))
    else:
        print(json.dumps(times(), indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
