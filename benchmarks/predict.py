"""Prediction: images a second through `vit.load(run).stream`, against decoding and against the forward pass alone.

    uv run python benchmarks/predict.py [--images 256] [--size 224] [--variant Ti/16]

Makes JPEG files and a run with an untrained model, and measures in turns: decoding and bringing to size in as many threads as
there are cores; the jitted forward pass on batches that are there already; both, by `stream`. Prints JSON. `ratio` is the
stream's speed as a share of what decoding and forward pass together would allow: their seconds added on a CPU, where both
want the same cores; the slower of the two on an accelerator.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from PIL import Image

from vit.config import Config, FolderData, ViTConfig
from vit.deploy.predict import Predictor
from vit.models.vit import split
from vit.tasks import make_task
from vit.training.evaluate import Trained
from vit.training.log import matmul_speed
from vit.training.sharding import place

ROUNDS = 3


def photographs(folder: Path, count: int) -> list[Path]:
    """JPEGs of 500 by 375 pixels: smooth shapes with some noise, as large as photographs are (40 kB)."""
    rng, paths = np.random.default_rng(0), []
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        image = np.asarray(small.resize((500, 375), Image.Resampling.BICUBIC), np.int16) + rng.normal(0, 8, (375, 500, 1))
        paths.append(folder / f"{i:04d}.jpg")
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def untrained(variant: str, size: int) -> Predictor:
    """A model of 1,000 classes as `vit.load` would give it."""
    config = Config(batch_size=64, model=ViTConfig.variant(variant), data=FolderData(dir="made up", size=size))
    data = {"class_names": [str(i) for i in range(1000)], "image_size": [size, size], "channels": 3}
    task = make_task(config.task, config.model, data)
    _, params = split(task.build(nnx.Rngs(0)))
    host = {path: np.asarray(x) for path, x in params.items()}
    return Predictor(Trained(config, task, host, {"data": data}, 0, Path("nowhere"), []))


def seconds(work: Callable[[], object]) -> float:
    """What a call takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    """Measure the three in turns."""
    flags = argparse.ArgumentParser()
    flags.add_argument("--images", type=int, default=256)
    flags.add_argument("--size", type=int, default=224)
    flags.add_argument("--variant", default="Ti/16")
    wanted = flags.parse_args()
    predictor, workers = untrained(wanted.variant, wanted.size), os.cpu_count() or 1
    B = predictor.batch_size()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        paths = photographs(Path(folder), wanted.images // B * B or B)

        def decode() -> None:
            for _ in pool.map(predictor.view, paths):
                pass

        views = np.stack([predictor.view(path) for path in paths[:B]])

        def forward() -> None:
            for _ in range(len(paths) // B):
                out = predictor._classify(predictor._params, place({"image": views}, predictor._mesh))
            jax.block_until_ready(out)

        def both() -> None:
            assert sum(1 for _ in predictor.stream(paths)) == len(paths)

        forward()
        taken = {name: [] for name in ("decode", "forward", "stream")}
        speeds = []
        for _ in range(ROUNDS):
            speeds.append(matmul_speed())
            for name, work in (("decode", decode), ("forward", forward), ("stream", both)):
                taken[name].append(seconds(work))
    middle = {name: statistics.median(x) for name, x in taken.items()}
    shared = jax.devices()[0].platform == "cpu"
    least = middle["decode"] + middle["forward"] if shared else max(middle["decode"], middle["forward"])
    figures = {
        "device": jax.devices()[0].device_kind,
        "cores": workers,
        "matmul_gflops": round(statistics.median(speeds)),
        "model": f"{wanted.variant} at {wanted.size}",
        "batch": B,
        "images": len(paths),
        "images_per_s": {name: round(len(paths) / s, 1) for name, s in middle.items()},
        "ratio": round(least / middle["stream"], 3),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
