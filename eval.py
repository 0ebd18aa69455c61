"""Evaluate a run on a whole split, every example once.

    uv run eval.py --workdir runs/digits-s0
    uv run eval.py --workdir runs/digits-s0 --split val --checkpoint best

Prints a table and writes eval.json, predictions.npz and pictures into the run's folder.
"""

import sys
from dataclasses import dataclass
from typing import Literal

from vit.errors import UserError, told_to_the_user
from vit.flags import parse
from vit.training.stop import Stop


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate."""

    workdir: str = ""
    """Folder of the run."""
    split: Literal["auto", "test", "val", "train"] = "auto"
    """Which part of the data set; auto is test, or val where there is no test split."""
    checkpoint: str = "last"
    """last, best (by validation), or a step."""


def main(wanted: Evaluation, stop: Stop) -> None:
    """Run folder → model → split → figures."""
    if not wanted.workdir:
        raise UserError("--workdir is missing", "the command line", "give the folder of a run, as --workdir runs/digits-s0")
    # Here and not above, so that a mistyped flag is answered at once and a signal during these seconds is heard.
    from vit.data.sources import splits
    from vit.report import results
    from vit.training.evaluate import evaluate_split, open_run
    from vit.training.storage import open_folder

    run = open_folder(wanted.workdir)
    model = open_run(run, wanted.checkpoint)
    for warning in model.warnings:
        print(f"warning: {warning}; step {model.step} is used", file=sys.stderr)
    split = splits(model.config.data)[-1] if wanted.split == "auto" else wanted.split
    figures, examples, source = evaluate_split(model, split, stop)
    results.write(run, model, figures, examples, source)


if __name__ == "__main__":
    stop = Stop.listen()
    with told_to_the_user():
        main(parse(sys.argv[1:], Evaluation(), __doc__ or ""), stop)
