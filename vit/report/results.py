"""What an evaluation leaves: a table on the console, eval.json, predictions.npz, and the task's pictures."""

import io
import json
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vit.errors import UserError
from vit.report import classification, curves, detection, page, segmentation
from vit.tasks.classification import Classification
from vit.tasks.detection import Detection
from vit.tasks.mask_segmentation import MaskSegmentation
from vit.tasks.segmentation import Segmentation
from vit.training.evaluate import Trained
from vit.training.storage import write_atomically

# Each module has `beginning`, `watch`, `arrays`, `validation`, `evaluation` and `lines`.
OF_TASK: dict[type, ModuleType] = {
    Classification: classification,
    Segmentation: segmentation,
    MaskSegmentation: segmentation,
    Detection: detection,
}


def write(run: Any, model: Trained, figures: dict[str, Any], examples: dict[str, np.ndarray], source: Any) -> None:
    """Write all files of an evaluation into the run's folder and print the table.

    The source is asked only for the few images that are drawn.
    """
    own, npz = OF_TASK[type(model.task)], io.BytesIO()
    np.savez_compressed(npz, **own.arrays(model.task, examples))
    write_atomically(run / "predictions.npz", npz.getvalue())
    write_atomically(run / "eval.json", json.dumps(figures, indent=1, allow_nan=False) + "\n")
    title = f"{figures['dataset']} {figures['split']}, step {figures['step']:,}"
    own.evaluation(run, model.task, examples, figures, source, title)

    _table(title, own.lines(figures))
    page.report(run)


def write_probe(run: Any, figures: dict[str, Any]) -> None:
    """Print a probe's figures as a table, and write them into the run's folder, if there is one."""
    if run is not None:
        run.mkdir(parents=True, exist_ok=True)
        write_atomically(run / f"probe-{figures['probe']}.json", json.dumps(figures, indent=1, allow_nan=False) + "\n")
    low, high = figures["top1_ci95"]
    rows = [("training images", f"{figures['train_examples']:,}"), ("examples", f"{figures['examples']:,}")]
    rows += [("top-1", f"{figures['top1']:.2%}"), ("95 % interval", f"{low:.2%} to {high:.2%}")]
    rows += [(f"top-1, {n} a class", f"{x['mean']:.2%} ± {x['std']:.2%}") for n, x in figures["few_shot"].items()]
    _table(f"{figures['probe']} probe of {figures['model']}, {figures['dataset']} {figures['split']}", rows)


def _table(title: str, rows: Iterable[tuple[str, str]]) -> None:
    table = Table(title=Text(title), title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in rows:
        table.add_row(Text(name), value)
    Console(highlight=False).print(table)


def training(run: Any, task: Any, source: Any, seen: dict[str, Any], evaluated: bool) -> None:
    """What can be drawn when training has ended, be it early: curves, the last validation, the page.

    A disk that refuses them costs the pictures, not the run, nor the message of what ended it.

    Args:
      seen: of the last validation, `step`, `figures`, `examples` and what was `watched`; empty if there was none.
      evaluated: the run was evaluated before; else the pictures of the evaluation show the validation split for now.
    """
    try:
        curves.curves(run)
        if seen:
            own, examples = OF_TASK[type(task)], seen["examples"]
            part = "" if len(examples["id"]) == len(source) else f" ({len(examples['id'])} of {len(source):,} images)"
            title = f"{source.name} val{part}, step {seen['step']:,}"
            own.validation(run, task, seen, source, title)
            if not evaluated:
                own.evaluation(run, task, examples, seen["figures"], source, title)
        page.report(run)
    except (OSError, UserError) as error:  # UserError: the folder is gone
        print(f"the pictures and report.html couldn't be written: {error}")
