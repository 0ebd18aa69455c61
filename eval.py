"""Evaluate a run on a whole split, every example once; or ask what the features of a run, or of any weights, know.

    uv run eval.py --workdir runs/digits-s0
    uv run eval.py --workdir runs/digits-s0 --split val --checkpoint best
    uv run eval.py --workdir runs/digits-s0 --probe knn --few-shot 1,5,10
    uv run eval.py --weights timm:vit_small_patch14_dinov2.lvd142m --data.dir DIR --probe linear

Prints a table and writes eval.json, predictions.npz and pictures into the run's folder; of a probe, probe-knn.json or
probe-linear.json.
"""

import sys
from dataclasses import dataclass, field
from typing import Any, Literal

from vit.config import FolderData
from vit.errors import UserError, told_to_the_user
from vit.flags import parse
from vit.limits import Natural
from vit.training.stop import Stop


@dataclass(frozen=True)
class Images:
    """The images of a probe on weights."""

    dir: str = ""
    """Class folders, a table of paths and labels, or a prepared set (docs/decisions/0008)."""
    size: Natural = 0
    """Side of the central crops; 0: the weights'."""
    bad_images: Literal["error", "skip"] = "error"
    """An image that can't be decoded ends the evaluation, or isn't counted."""


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate."""

    workdir: str = ""
    """Folder of the run; with --weights, where the figures go."""
    split: Literal["auto", "test", "val", "train"] = "auto"
    """Which part of the data set; auto is test, or val where there is no test split."""
    checkpoint: str = "last"
    """last, best (by validation), or a step."""
    probe: Literal["none", "knn", "linear"] = "none"
    """Classify frozen features by the 20 nearest of the training split, or by logistic regression on it."""
    few_shot: str = ""
    """Probe also with so many training images a class, as 1,5,10: the mean of five draws."""
    weights: str = ""
    """Probe these instead of a run: a file, a run's folder, timm:NAME or hf:NAME."""
    data: Images = field(default_factory=Images)


def main(wanted: Evaluation, stop: Stop) -> None:
    """Run folder → model → split → figures."""
    if bad := contradiction(wanted):
        raise UserError(bad[0], "the command line", bad[1])
    # Here and not above, so that a mistyped flag is answered at once and a signal during these seconds is heard.
    from vit.data.sources import splits
    from vit.report import results
    from vit.training.evaluate import evaluate_split, open_run
    from vit.training.probe import few, probe
    from vit.training.storage import open_folder

    shots, run = few(wanted.few_shot), open_folder(wanted.workdir) if wanted.workdir else None
    model = weighed(wanted) if wanted.weights else open_run(run, wanted.checkpoint)
    for warning in model.warnings:
        print(warning if wanted.weights else f"warning: {warning}; step {model.step} is used", file=sys.stderr)
    split = splits(model.config.data)[-1] if wanted.split == "auto" else wanted.split
    if wanted.probe == "none":
        figures, examples, source = evaluate_split(model, split, stop)
        results.write(run, model, figures, examples, source)
    else:
        results.write_probe(run, probe(model, wanted.probe, split, shots, stop))


def contradiction(wanted: Evaluation) -> tuple[str, str] | None:
    """What the flags lack or have too much, and the mending."""
    if not wanted.workdir and not wanted.weights:
        return "--workdir is missing", "give the folder of a run, as --workdir runs/digits-s0"
    if wanted.probe == "none" and (wanted.few_shot or wanted.weights):
        return f"{'--few-shot' if wanted.few_shot else '--weights'} needs a probe", "give --probe knn or --probe linear"
    if wanted.weights and wanted.checkpoint != "last":
        return "--weights are those of a run's last checkpoint", "leave --checkpoint out, or give --workdir instead"
    if not wanted.weights and wanted.data != Images():
        return "--data is of a probe on --weights", "leave it out: a run knows its data"
    if bool(wanted.weights) != bool(wanted.data.dir):
        return "--weights and --data.dir go together", "give both, or --workdir for a run on its own data"
    return None


def weighed(wanted: Evaluation) -> Any:
    """The weights as a model of the images."""
    from vit.weights import start

    data = FolderData(dir=wanted.data.dir, bad_images=wanted.data.bad_images)
    return start.frozen(wanted.weights, data, wanted.data.size)


if __name__ == "__main__":
    stop = Stop.listen()
    with told_to_the_user():
        main(parse(sys.argv[1:], Evaluation(), __doc__ or ""), stop)
