"""A training step on one accelerator in bfloat16: images a second, share of the sheet's FLOP/s (MFU), memory, PyTorch's too.

    python benchmarks/accelerator.py [--models S/16:512 B/16:256] [--contenders vit 'torch, compiled'] [--steps 30]

Images are of 224 px and 1,000 classes; `vit` gets each batch as uint8 from the host, as a run does, PyTorch's peers (autocast,
fused AdamW) have theirs on the device. Each contender is a process of its own, one after the other. `vit, remat` keeps a
block's input only; `vit, XLA` and `vit, cuDNN` force one way to compute attention on a GPU.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from vit.config import ViTConfig

SIDE, CLASSES = 224, 1000
CONTENDERS = ["vit", "vit, remat", "torch", "torch, compiled", "timm, compiled"]


def ours(config: ViTConfig, batch: int, kind: str) -> tuple[Callable[[], Any], Callable[[Any], Any], Callable[[], int]]:
    """A step that doesn't wait, what waits for its result, and bytes in use at the most."""
    import jax

    from benchmarks.step import made_up
    from vit.config import AugmentConfig, Config, TfdsData
    from vit.data.augment import make_prepare
    from vit.models import attention
    from vit.tasks import make_task
    from vit.training.hardware import peak_memory
    from vit.training.sharding import make_mesh, place
    from vit.training.state import init_state, make_train_step

    for name in ("LONG", "LONG_ON_GPU"):
        setattr(attention, name, {"XLA": 10**9, "cuDNN": 0}.get(kind, getattr(attention, name)))
    model = dataclasses.replace(config, dtype="bfloat16", remat=kind == "remat")
    run = Config(model=model, batch_size=batch, data=TfdsData(), augment=AugmentConfig(flip=True, mixup=0.2), clip=1.0)
    data, made = made_up(SIDE, batch, CLASSES)
    task = make_task(run.task, run.model, data)
    mesh, state = make_mesh(), init_state(task.build, run)
    step = make_train_step(task, make_prepare(run.data, run.augment), run)

    def once() -> Any:
        nonlocal state
        state, metrics = step(state, place(made, mesh))
        return metrics["loss"]

    return once, jax.block_until_ready, peak_memory


def theirs(config: ViTConfig, batch: int, name: str) -> tuple[Callable[[], Any], Callable[[Any], Any], Callable[[], int]]:
    """The same of PyTorch."""
    import torch

    from benchmarks.peers import BUILD, train_step

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    name, _, compiled = name.partition(", ")
    model = BUILD[name](config, SIDE, CLASSES).cuda().train()
    images = torch.randn(batch, 3, SIDE, SIDE, device="cuda")
    labels = torch.randint(0, CLASSES, (batch,), device="cuda")
    step = train_step(model, bool(compiled))

    def once() -> Any:
        with torch.autocast("cuda", torch.bfloat16):
            return step(images, labels)

    return once, float, torch.cuda.max_memory_allocated


def contender(name: str, model: str, batch: int, steps: int) -> dict[str, Any]:
    """Measured in this process: compiled, warmed up, then `steps` in a row."""
    from vit.models.vit import flops
    from vit.training.hardware import CHIPS

    config, begin = ViTConfig.variant(model), time.perf_counter()
    of_vit = name.startswith("vit")
    once, wait, peak = ours(config, batch, name.partition(", ")[2]) if of_vit else theirs(config, batch, name)
    for _ in range(3):
        wait(once())
    ready = time.perf_counter() - begin
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        for _ in range(steps):
            last = once()
        wait(last)
        times.append((time.perf_counter() - begin) / steps)
    second, device = sorted(times)[1], device_name(name)
    work = 3 * batch * flops(config, image_size=(SIDE, SIDE), channels=3, classes=CLASSES)
    row = {"device": device, "model": model, "batch": batch, "contender": name, "ms": round(1e3 * second, 2)}
    row |= {"spread_ms": [round(1e3 * t, 2) for t in (min(times), max(times))], "images_per_s": round(batch / second)}
    row |= {"mfu": round(work / second / CHIPS[device].flops, 3)} if device in CHIPS else {}
    return row | {"peak_gb": round(peak() / 1e9, 2), "ready_s": round(ready, 1)}


def device_name(contender: str) -> str:
    """As its maker calls it."""
    if contender.startswith("vit"):
        import jax

        return jax.devices()[0].device_kind
    import torch

    return torch.cuda.get_device_name()


def main() -> None:
    """Measure what was asked for; a line of JSON each."""
    flags = argparse.ArgumentParser()
    flags.add_argument("--models", nargs="*", default=["S/16:512", "B/16:256", "L/16:128"])
    flags.add_argument("--contenders", nargs="*", default=CONTENDERS)
    flags.add_argument("--steps", type=int, default=30)
    flags.add_argument("--one", action="store_true")
    wanted = flags.parse_args()
    if wanted.one:
        model, batch = wanted.models[0].split(":")
        print(json.dumps(contender(wanted.contenders[0], model, int(batch), wanted.steps)), flush=True)
        return
    env = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    for model in wanted.models:
        for name in wanted.contenders:
            command = [sys.executable, __file__, "--one", "--models", model, "--contenders", name, "--steps", str(wanted.steps)]
            done = subprocess.run(command, text=True, env=env, capture_output=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            print(done.stdout.strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
