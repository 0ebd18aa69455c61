"""What an evaluation leaves: a table on the console, eval.json, predictions.npz, confusion.png."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vit.report import pictures
from vit.training.evaluate import Trained
from vit.training.storage import write_atomically


def write(run: Path, model: Trained, figures: dict[str, Any], examples: dict[str, np.ndarray]) -> None:
    """Write all files of an evaluation into the run's folder and print the table."""
    probabilities, npz = model.task.probabilities(examples["outputs"]), io.BytesIO()
    np.savez(npz, probabilities=probabilities, labels=examples["label"], example_ids=examples["id"])
    write_atomically(run / "predictions.npz", npz.getvalue())
    write_atomically(run / "eval.json", json.dumps(figures, indent=1, allow_nan=False) + "\n")

    names = model.task.class_names
    matrix = np.zeros((len(names), len(names)), int)
    np.add.at(matrix, (examples["label"], probabilities.argmax(axis=1)), 1)
    title = f"{figures['dataset']} {figures['split']}: {figures['top1']:.2%} of {figures['examples']:,}"
    pictures.confusion(run / "confusion.png", matrix, names, title)
    Console(highlight=False).print(table(figures))


def table(figures: dict[str, Any]) -> Table:
    """The figures, scores in per cent; of the classes the three weakest."""
    shown = Table(title=f"{figures['dataset']} {figures['split']}, step {figures['step']}", title_justify="left")
    shown.add_column("figure")
    shown.add_column("value", justify="right")
    low, high = figures["top1_ci95"]
    shown.add_row("examples", f"{figures['examples']:,}")
    shown.add_row("top-1", f"{figures['top1']:.2%}")
    shown.add_row("95 % interval", f"{low:.2%} to {high:.2%}")
    for name, label in (("top5", "top-5"), ("balanced_accuracy", "balanced accuracy")):
        if name in figures:
            shown.add_row(label, f"{figures[name]:.2%}")
    for name, label in (("loss", "loss"), ("nll", "negative log-likelihood"), ("ece", "calibration error")):
        shown.add_row(label, f"{figures[name]:.4f}")
    known = {name: score for name, score in figures["per_class_accuracy"].items() if score is not None}
    for name, score in sorted(known.items(), key=lambda item: item[1])[:3]:
        shown.add_row(f"class {name}", f"{score:.2%}")
    return shown
