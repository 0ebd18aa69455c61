"""What pretraining is worth: a run's weights fine-tuned on an image folder, and the same model from scratch for equal steps.

    uv run python benchmarks/transfer.py --weights runs/cifar10_cpu-s0 --data.dir DIR [--steps 400] [--size 32] [--seeds 0 1 2]

Each is a run of train.py as a user starts it, with the settings that configs/finetune.py chooses; accuracy is that of the
held-out split. Prints JSON: each run's accuracy and seconds, and mean and standard deviation of the accuracies. The same
command goes on where it was stopped; --out is where the runs are.
"""

import json
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from vit.config import FREE, fields
from vit.errors import UserError, told_to_the_user
from vit.flags import parse
from vit.limits import flag
from vit.training.storage import open_folder
from vit.weights import load

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Images:
    """Where the images are."""

    dir: str = ""
    """The folder of images to fine-tune on."""


@dataclass(frozen=True)
class Transfer:
    """What to compare."""

    weights: str = ""
    """Folder of the run that was pretrained."""
    data: Images = field(default_factory=Images)
    size: int = 32
    """Side of the images in pixels."""
    steps: int = 400
    """Updates of each run."""
    batch_size: int = 64
    """Images an update."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs from each start."""
    out: str = "runs/transfer"
    """Folder of the runs."""
    more: str = ""
    """Further flags for train.py, in one text."""


def main(wanted: Transfer) -> None:
    """Three runs from the weights, three from scratch."""
    if not (wanted.weights and wanted.data.dir):
        fix = "give both, as --weights runs/cifar10_cpu-s0 --data.dir DIR"
        raise UserError("--weights or --data.dir is missing", "the command line", fix)
    sizes = {name: value for name, (_, value) in fields(load(wanted.weights).config, "model.").items() if name[6:] not in FREE}
    same = []
    for name, value in sizes.items():
        yes_or_no = flag(name) if value else flag(name.replace("model.", "model.no_"))
        same.append(yes_or_no if isinstance(value, bool) else f"{flag(name)}={value}")
    starts = {"pretrained": ["--weights", wanted.weights], "scratch": same}
    result: dict[str, object] = {"weights": wanted.weights, "data": wanted.data.dir, "steps": wanted.steps, "size": wanted.size}
    for start, flags in starts.items():
        runs = [one(wanted, start, seed, flags) for seed in wanted.seeds]
        scores = [run["top1"] for run in runs]
        result[start] = {
            "top1": scores,
            "mean": statistics.mean(scores),
            "std": statistics.stdev(scores) if len(scores) > 1 else 0.0,
            "examples": runs[0]["examples"],
            "split": runs[0]["split"],
            "seconds": [run["seconds"] for run in runs],
        }
    print(json.dumps(result, indent=1))


def one(wanted: Transfer, start: str, seed: int, flags: list[str]) -> dict:
    """A run's figures; one that is finished already is not run again."""
    workdir = open_folder(wanted.out) / f"{start}-s{seed}"
    command = [
        sys.executable, ROOT / "train.py", "--config", ROOT / "configs" / "finetune.py", "--data.dir", wanted.data.dir,
        "--data.size", wanted.size, "--steps", wanted.steps, "--batch-size", wanted.batch_size,
        "--seed", seed, "--workdir", workdir, *flags, *shlex.split(wanted.more),
    ]  # fmt: skip
    begin = time.perf_counter()
    done = subprocess.run([str(word) for word in command], cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads((workdir / "eval.json").read_text()) | {"seconds": round(time.perf_counter() - begin, 1)}


if __name__ == "__main__":
    with told_to_the_user():
        main(parse(sys.argv[1:], Transfer(), __doc__ or ""))
