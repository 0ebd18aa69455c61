"""What saving costs the CIFAR-10 CPU recipe: steps with a checkpoint among them against steps without, in turns.

    uv run python benchmarks/saving.py

Prints JSON: seconds of a full-size step, seconds that one save adds (its blocking part and what it slows down), and the
share of the training time that all saves of the recipe take.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from vit.config import to_json
from vit.data.augment import make_prepare
from vit.flags import load_config
from vit.tasks import make_task
from vit.training.checkpoint import Checkpoints
from vit.training.log import matmul_speed
from vit.training.sharding import distribute, make_mesh, place, state_shardings
from vit.training.state import init_state, make_train_step, state_shapes

STEPS, ROUNDS = 8, 7


def main() -> None:
    """Alternate between steps with a save and steps without."""
    config = load_config(Path(__file__).parent.parent / "configs" / "cifar10_cpu.py")
    rng, B = np.random.default_rng(0), config.batch_size
    data = {"class_names": [str(i) for i in range(10)], "image_size": [32, 32], "channels": 3}
    task, mesh = make_task(config.task, config.model, data), make_mesh()
    like = state_shardings(state_shapes(task, config), mesh, config.fsdp)
    state = distribute(init_state(task.build, config), like)
    step = make_train_step(task, make_prepare(config.data, config.augment), config, like)
    images = rng.integers(0, 256, (B, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, B).astype(np.int32)
    batch = place({"image": images, "label": labels, "id": np.arange(B, dtype=np.int32), "mask": np.ones(B, bool)}, mesh)
    meta = {"scores": {}, "config": to_json(config), "data": data}
    without, added, blocking = [], [], []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder) / "checkpoints", config.keep) as checkpoints:

        def steps(save: int) -> float:
            nonlocal state
            jax.block_until_ready(state)
            begin = time.perf_counter()
            for i in range(STEPS):
                if save and i == 1:
                    asked = time.perf_counter()
                    checkpoints.save(save, state, meta)
                    blocking.append(time.perf_counter() - asked)
                state, metrics = step(state, batch)
                jax.block_until_ready(metrics)
            seconds = time.perf_counter() - begin
            checkpoints.wait()
            return seconds

        steps(0)
        steps(1)
        speed = matmul_speed()
        for i in range(2, 2 + ROUNDS):
            plain = steps(0)
            added.append(steps(i) - plain)
            without.append(plain / STEPS)
    saves = config.steps / config.save_every + 1
    a_step, a_save = statistics.median(without), statistics.median(added)
    mean_step = 0.57 * a_step  # the recipe's smaller images: 0.4 of the steps at 16 pixels, 0.3 at 24
    figures = {
        "matmul_gflops": round(speed),
        "step_s": a_step,
        "save_adds_s": a_save,
        "of_it_blocking_s": statistics.median(blocking[1:]),
        "save_in_steps": a_save / a_step,
        "state_mb": sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6,
        "share_of_recipe": saves * a_save / (config.steps * mean_step),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
