"""The pictures, arrays and lines of the table that a classifier's training and evaluation give."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Int

from vit.config import Config
from vit.data.batches import Batches
from vit.data.sources import labels
from vit.report import attention, counts, pictures, scores
from vit.report.draw import row

SHOWN = 24  # examples in a picture


def beginning(run: Any, task: Any, config: Config, batches: Batches, prepare: Any, sources: dict[str, Any]) -> None:
    """`train_batch.png` and `labels.png`."""
    pictures.train_batch(run / "train_batch.png", batches, prepare, config, task.class_names)
    most = 1_000 if config.data.stream else None  # a label is read with its image
    counts.labels(run / "labels.png", {name: labels(source, most) for name, source in sources.items()}, task.class_names)


def watch(task: Any, prepare: Any, source: Any, mesh: Any) -> Callable[[dict[str, Any]], Any]:
    """Parameters → what `validation` wants to know beside the examples; all processes of a run must ask together."""
    return attention.watch(task, prepare, source, mesh)


def arrays(task: Any, examples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What predictions.npz holds."""
    probabilities = task.probabilities(examples["outputs"])
    return {"probabilities": probabilities, "labels": examples["label"], "example_ids": examples["id"]}


def validation(run: Any, task: Any, seen: dict[str, Any], source: Any, title: str) -> None:
    """`val_predictions.png`: the first examples; and `attention.png`."""
    examples, figures = seen["examples"], seen["figures"]
    first = np.arange(min(SHOWN, len(examples["label"])))
    probabilities, truth = task.probabilities(examples["outputs"][first]), examples["label"][first]
    title = f"{title}, top-1 {figures['top1']:.2%}: first examples (✓ right, → wrong; how sure)"
    pictures.predictions(
        run / "val_predictions.png", _images(source, examples["id"], first), truth, probabilities, task.class_names, title
    )
    attention.picture(run / "attention.png", seen["watched"], task.class_names)


def evaluation(run: Any, task: Any, examples: dict[str, np.ndarray], figures: dict[str, Any], source: Any, title: str) -> None:
    """`confusion.png`, `calibration.png` and `top_losses.png`: all of the split."""
    probabilities, truth = task.probabilities(examples["outputs"]), examples["label"]
    matrix = scores.confusion_matrix(truth, probabilities.argmax(axis=1), len(task.class_names))
    told = f"{title}: {figures['top1']:.2%} of {figures['examples']:,} right"
    scores.confusion(run / "confusion.png", matrix, task.class_names, told)

    sums = task.metrics(examples["outputs"], examples)
    scores.calibration(run / "calibration.png", sums["bin_count"], sums["bin_confidence"], sums["bin_hits"], title)

    losses = scores.losses(probabilities, truth)
    worst = scores.worst(losses, SHOWN)
    told = f"{title}: the examples with the highest loss (✓ right, → wrong)"
    chosen = _images(source, examples["id"], worst), truth[worst], probabilities[worst], task.class_names, told, losses[worst]
    pictures.predictions(run / "top_losses.png", *chosen)


def lines(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Figures for people, scores in per cent; of the classes the three weakest."""
    low, high = figures["top1_ci95"]
    yield "examples", f"{figures['examples']:,}"
    yield "top-1", f"{figures['top1']:.2%}"
    yield "95 % interval", f"{low:.2%} to {high:.2%}"
    for name, label in (("top5", "top-5"), ("balanced_accuracy", "balanced accuracy")):
        if name in figures:
            yield label, f"{figures[name]:.2%}"
    for name, label in (("loss", "loss"), ("nll", "negative log-likelihood"), ("ece", "calibration error")):
        yield label, f"{figures[name]:.4f}"
    known = {name: score for name, score in figures["per_class_accuracy"].items() if score is not None}
    for name, score in sorted(known.items(), key=lambda item: item[1])[:3]:
        yield f"class {name}", f"{score:.2%}"


def _images(source: Any, ids: Int[np.ndarray, "_"], places: Iterable[int]) -> list[np.ndarray]:
    return [row(source, ids, i)["image"] for i in places]
