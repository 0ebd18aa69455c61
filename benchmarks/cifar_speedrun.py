"""CIFAR-10 on this machine for equal time: this project's recipe, and what a tutorial in PyTorch would have one do.

    uv run vit prepare cifar10 --data.dir DIR
    python benchmarks/cifar_speedrun.py --data.dir DIR --minutes 30 [--only peer] [--json speedrun.json]

The peer is a plain patch-4 ViT of the tutorials' usual size and settings (width 256, 6 blocks, 8 heads, AdamW 5e-4, cosine,
random crop and flip). One after the other has the machine; each knows how long it has and lets its learning rate
end there. Both are evaluated on the 5,000 training images held out; evaluations
don't count as time, nor does our compilation. JSON: both curves.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from vit.config import TfdsData, ViTConfig
from vit.training.log import read_metrics

RECIPE = Path(__file__).parent.parent / "configs" / "cifar10_cpu.py"
PEER = ViTConfig(patch=4, width=256, depth=6, heads=8, mlp=512)
EVALUATIONS, PEAK = 8, 5e-4
MEAN, STD = np.array([0.4914, 0.4822, 0.4465], np.float32), np.array([0.2470, 0.2435, 0.2616], np.float32)


def arrays(directory: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images (N, H, W, C) and labels of a split."""
    from vit.data.sources import open_source

    source = open_source(TfdsData(dir=directory), split)
    examples = [source[i] for i in range(len(source))]
    return np.stack([x["image"] for x in examples]), np.array([x["label"] for x in examples], np.int64)


def peer(directory: str, seconds: float) -> list[tuple[float, float]]:
    """(seconds of training, accuracy) of the tutorial's recipe."""
    import torch
    import torch.nn.functional as F

    from benchmarks.peers import Plain

    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rng = np.random.default_rng(0)
    images, labels = arrays(directory, "train")
    held, truth = arrays(directory, "val")
    model = Plain(PEER, 32, 10)
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.05, fused=True)

    def tensor(x: np.ndarray) -> Any:
        return torch.from_numpy(((x / np.float32(255) - MEAN) / STD).transpose(0, 3, 1, 2))

    @torch.inference_mode()
    def accuracy() -> float:
        guesses = [model(tensor(held[i : i + 500])).argmax(1).numpy() for i in range(0, len(held), 500)]
        return float((np.concatenate(guesses) == truth).mean())

    curve, used, at = [(0.0, 0.1)], 0.0, len(images)
    order = np.arange(len(images))
    while used < seconds:
        begin = time.perf_counter()
        if at + 128 > len(order):
            order, at = rng.permutation(len(images)), 0
        places, at = order[at : at + 128], at + 128
        for group in optimiser.param_groups:
            group["lr"] = PEAK * 0.5 * (1 + math.cos(math.pi * used / seconds))
        loss = F.cross_entropy(model(tensor(augmented(rng, images[places]))), torch.from_numpy(labels[places]))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        used += time.perf_counter() - begin
        if used >= len(curve) * seconds / EVALUATIONS:
            curve.append((used, accuracy()))
            print(f"peer: {used:.0f} s, {curve[-1][1]:.2%}", flush=True)
    return curve


def augmented(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """Cropped from 4 black pixels around, and flipped, at random."""
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    corners, flips = rng.integers(0, 9, (len(images), 2)), rng.random(len(images)) < 0.5
    crops = [x[y : y + 32, z : z + 32] for x, (y, z) in zip(padded, corners, strict=True)]
    return np.stack([x[:, ::-1] if flip else x for x, flip in zip(crops, flips, strict=True)])


def ours(directory: str, seconds: float) -> list[tuple[float, float]]:
    """(seconds of training, accuracy) of this project's recipe, with as many steps as a trial says will fit.

    Steps at the full size are the dearest, so the trial counts each size by its share of the run.
    """
    shares = {16: 0.4, 24: 0.3, 32: 0.3}
    with tempfile.TemporaryDirectory() as folder:
        speed = {size: _seconds_a_step(directory, f"{folder}/{size}", size) for size in shares}
        steps = int(seconds / sum(share * speed[size] for size, share in shares.items()))
        every = max(1, steps // EVALUATIONS)
        rows = _train(directory, f"{folder}/run", steps, f"--eval-every={every}", f"--schedule.warmup={max(1, steps // 20)}")
    a_step = [128 / row["images_per_s"] for row in rows if row["split"] == "train"]  # of each ten
    spent = np.cumsum([10 * x for x in a_step])
    return [(0.0, 0.1)] + [
        (float(spent[min(row["step"] // 10, len(spent)) - 1]), row["top1"]) for row in rows if row["split"] == "val"
    ]


def _seconds_a_step(directory: str, folder: str, size: int) -> float:
    flags = [f"--schedule.sizes={size}", "--schedule.until=0.999"] if size < 32 else ["--schedule.sizes", "--schedule.until"]
    rows = _train(directory, folder, 30, "--eval-every=100000", "--schedule.warmup=1", *flags)
    return 128 / [row["images_per_s"] for row in rows if row["split"] == "train"][-2 if size < 32 else -1]


def _train(directory: str, folder: str, steps: int, *flags: str) -> list[dict[str, Any]]:
    program = [sys.executable, str(RECIPE.parent.parent / "train.py"), f"--config={RECIPE}", f"--data.dir={directory}"]
    always = [f"--workdir={folder}", f"--steps={steps}", "--save-every=100000", "--log-every=10"]
    subprocess.run([*program, *always, *flags], check=True, stdout=sys.stderr)
    return read_metrics(Path(folder) / "metrics.jsonl")


def main() -> None:
    """Both, one after the other."""
    flags = argparse.ArgumentParser()
    flags.add_argument("--data.dir", dest="directory", required=True)
    flags.add_argument("--minutes", type=float, default=30)
    flags.add_argument("--only", choices=("vit", "peer"))
    flags.add_argument("--json", type=Path)
    wanted = flags.parse_args()
    curves = {}
    for name, run in (("vit", ours), ("peer", peer)):
        if wanted.only in (None, name):
            curves[name] = [[round(t), round(x, 4)] for t, x in run(wanted.directory, 60 * wanted.minutes)]
    if len(curves) == 2:
        goal = curves["peer"][-1][1]
        first = next((t for t, x in curves["vit"] if x >= goal), None)
        print(f"the peer's {goal:.2%} after {wanted.minutes:g} min; vit has that after {f'{first} s' if first else 'longer'}")
    print(json.dumps({"minutes": wanted.minutes, "curves": curves}, indent=1))
    if wanted.json:
        wanted.json.write_text(json.dumps({"minutes": wanted.minutes, "curves": curves}, indent=1) + "\n")


if __name__ == "__main__":
    main()
