"""Curves over the steps, from the lines of metrics.jsonl: of one run, or of several in one picture."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from vit.report.draw import BLUE, ORANGE, png, save, text
from vit.training.log import read_metrics

# Scores → how people call them; a task is judged by the first that it has.
HEADLINES = {"top1": "top-1", "top5": "top-5", "balanced_accuracy": "balanced accuracy", "miou": "mean IoU", "ap": "AP"}
HEADLINES |= {"pixel_accuracy": "pixel accuracy", "boundary_f": "boundary F-score", "pq": "panoptic quality", "ap50": "AP50"}
COLOURS = (BLUE, ORANGE, "#2f8f5b", "#a23b72", "#6b6b6b", "#c2a11c", "#1c9cb0", "#7a4fb5")

Rows = list[dict[str, Any]]


def headline(figures: Mapping[str, Any]) -> str | None:
    """Which of the figures the task is judged by."""
    return next((name for name in HEADLINES if isinstance(figures.get(name), int | float)), None)


def points(rows: Rows, split: str, name: str) -> list[tuple[int, float]]:
    """(step, value) of one figure in rising order; a step that ran again after a roll-back counts as it went the last time."""
    last = {row["step"]: row.get(name) for row in rows if row["split"] == split}
    return [(step, x) for step, x in sorted(last.items()) if isinstance(x, int | float)]


def score_name(rows: Rows) -> str | None:
    """The validation lines' headline figure."""
    return next((name for row in rows if row["split"] == "val" and (name := headline(row))), None)


def best_validation(rows: Rows) -> tuple[float, int] | None:
    """Score and step of the best one; equal ones as training tells them apart: by the likelihood, then the earliest."""
    last = {row["step"]: row for row in rows if row["split"] == "val"}
    scores = [(row[key], -row.get("nll", 0), -step) for step, row in last.items() if (key := headline(row))]
    return (max(scores)[0], -max(scores)[2]) if scores else None


def curves(run: Any) -> None:
    """`curves.png`: loss, validation score and learning rate over the steps in metrics.jsonl."""
    rows = read_metrics(run / "metrics.jsonl")
    if not any(row["split"] in ("train", "val") for row in rows):
        return
    score = score_name(rows)
    figure, (loss, *middle, lr) = _panels(3 if score else 2)
    for label, split, colour in (("train", "train", BLUE), ("validation", "val", ORANGE)):
        _line(loss, points(rows, split, "loss"), color=colour, label=label)
    _finish_loss(loss)
    for ax, name in zip(middle, [score] if score else [], strict=True):
        _line(ax, points(rows, "val", name), color=ORANGE)
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        if best := best_validation(rows):
            ax.set_title(f"validation {HEADLINES[name]}: best {best[0]:.2%} at step {best[1]:,}", fontsize=10)
    _line(lr, points(rows, "train", "lr"), color=BLUE)
    lr.set_title("learning rate", fontsize=10)
    save(figure, run / "curves.png")


def overlaid(runs: Mapping[str, Rows]) -> bytes | None:
    """Training loss, validation loss and validation score of several runs as a PNG, one colour a run; None without any."""
    score = next((name for rows in runs.values() if (name := score_name(rows))), None)
    wanted = [("train", "loss", "training loss"), ("val", "loss", "validation loss")]
    wanted += [("val", score, f"validation {HEADLINES[score]}")] if score else []
    known = [panel for panel in wanted if any(points(rows, *panel[:2]) for rows in runs.values())]
    if not known:
        return None
    figure, axes = _panels(len(known), legend=0.25 * len(runs))
    for ax, (split, name, title) in zip(axes, known, strict=True):
        for i, rows in enumerate(runs.values()):
            _line(ax, points(rows, split, name), **_style(i))
        if name == "loss":
            _finish_loss(ax)
        else:
            ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.set_title(title, fontsize=10)
    lines = [Line2D([], [], **_style(i)) for i in range(len(runs))]
    names = [f" {text(name, 70)}" for name in runs]  # a blank first: matplotlib leaves a label that begins with _ out
    figure.legend(lines, names, loc="outside lower left", frameon=False, fontsize=9)
    return png(figure)


def _panels(count: int, legend: float = 0.0) -> tuple[Figure, list[Axes]]:
    figure = Figure((4.2 * count, 3.4 + legend), layout="constrained")
    axes: Any = figure.subplots(1, count, squeeze=False)
    for ax in axes.flat:
        ax.set_xlabel("step")
        ax.grid(alpha=0.25)
    return figure, list(axes.flat)


def _style(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": ("-", "--", ":")[i // len(COLOURS) % 3]}


def _line(ax: Axes, known: list[tuple[int, float]], **style: Any) -> None:
    if known:
        ax.plot(*zip(*known, strict=True), marker="." if len(known) < 40 else None, **style)


def _finish_loss(ax: Axes) -> None:
    ax.set_title("loss", fontsize=10)
    if ax.lines and ax.dataLim.minposy == ax.dataLim.y0:  # a loss of 0 has no logarithm
        ax.set_yscale("log")
    if len(ax.get_legend_handles_labels()[1]) > 1:
        ax.legend(frameon=False)
