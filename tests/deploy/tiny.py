"""A run's folder as train.py leaves it, made in a second: an untrained model whose head isn't zero."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from vit.config import Config, ViTConfig, to_json
from vit.data.augment import preprocessing
from vit.data.sources import Digits, describe, open_source
from vit.tasks import make_task
from vit.training.checkpoint import Checkpoints
from vit.training.state import init_state
from vit.training.workdir import versions, write_config

MODEL = ViTConfig(patch=2, width=16, depth=2, heads=2, mlp=32, pool="mean")


def tiny_run(folder: Path, config: Config | None = None, described: dict[str, Any] | None = None) -> Path:
    """Checkpoints 0 and 3 of a run on the digits, or on what the configuration and the description say."""
    config = config or Config(batch_size=16, model=MODEL)
    described = described or describe(open_source(config.data, "train"))
    task = make_task(config.task, config.model, described)
    state = jax.device_get(init_state(task.build, config))
    meta = {
        "config": to_json(config), "data": described, "preprocessing": preprocessing(config.data, described),
        "versions": versions(), "scores": {"0": [0.3, -2.0], "3": [0.2, -2.0]},
    }  # fmt: skip
    with Checkpoints(folder / "checkpoints") as checkpoints:
        for step in (0, 3):
            rng = np.random.default_rng(step)
            name = next(name for name in ("head/kernel", "head/classify/kernel") if name in state["params"])
            head = state["params"][name]
            params = {**state["params"], name: rng.normal(0, 1, head.shape).astype(np.float32)}
            checkpoints.save(step, jax.tree.map(jax.numpy.asarray, {**state, "params": params}), meta)
            checkpoints.wait()
    write_config(folder, config)
    return folder


def digit_files(folder: Path, count: int = 360, split: str = "test") -> list[Path]:
    """The first digits of a split as PNG files, 0000.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    source, paths = Digits(split), []
    for i in range(min(count, len(source))):
        paths.append(folder / f"{i:04d}.png")
        Image.fromarray(source[i]["image"][..., 0]).save(paths[-1])
    return paths
