"""How good a classifier is, computed from its predictions and drawn: confusion, calibration, the worst examples."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from vit.report.draw import BLUE, INK, ORANGE, PALE, heading, save, text

MANY = 40  # classes; beyond that the matrix has no room for names and numbers


class Confused(NamedTuple):
    """A class that was mistaken for another."""

    truth: int
    prediction: int
    times: int
    share: float  # of the true class's examples


class PerClass(NamedTuple):
    """What happened to the examples of each class; NaN where a share is of nothing."""

    examples: Int[np.ndarray, "K"]
    accuracy: Float[np.ndarray, "K"]
    precision: Float[np.ndarray, "K"]
    mistaken_for: Int[np.ndarray, "K"]  # -1: for none


def confusion_matrix(truth: Int[np.ndarray, "B"], predicted: Int[np.ndarray, "B"], K: int) -> Int[np.ndarray, "K K"]:
    """Counts of (true class, predicted class)."""
    matrix = np.zeros((K, K), int)
    np.add.at(matrix, (truth, predicted), 1)
    return matrix


def per_class(matrix: Int[np.ndarray, "K K"]) -> PerClass:
    """Examples, accuracy (recall), precision and the most frequent mistake of each class."""
    hits, examples, guessed = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    wrong = matrix - np.diag(hits)
    with np.errstate(invalid="ignore", divide="ignore"):
        return PerClass(examples, hits / examples, hits / guessed, np.where(wrong.any(axis=1), wrong.argmax(axis=1), -1))


def most_confused(matrix: Int[np.ndarray, "K K"], count: int) -> list[Confused]:
    """The pairs of classes that were mistaken most often, the worst first."""
    wrong = matrix - np.diag(np.diag(matrix))
    rows, columns = np.nonzero(wrong)
    order = np.argsort(-wrong[rows, columns], kind="stable")[:count]
    totals = matrix.sum(axis=1)
    pairs = zip(rows[order].tolist(), columns[order].tolist(), strict=True)
    return [Confused(row, column, int(matrix[row, column]), matrix[row, column] / totals[row]) for row, column in pairs]


def losses(probabilities: Float[np.ndarray, "B K"], truth: Int[np.ndarray, "B"]) -> Float[np.ndarray, "B"]:
    """-log of the probability given to the true class, in nats; at most about 708."""
    given = probabilities[np.arange(len(truth)), truth]
    return -np.log(np.maximum(given, np.finfo(float).tiny))


def worst(loss: Float[np.ndarray, "B"], count: int) -> Int[np.ndarray, "_"]:
    """Places of the highest losses, the highest first."""
    return np.argsort(-loss, kind="stable")[:count]


def confusion(path: Any, matrix: Int[np.ndarray, "K K"], class_names: Sequence[str], title: str) -> None:
    """Rows are the truth, columns the prediction, shades shares of the row; beyond 40 classes the worst pairs stand beside."""
    K, names = len(class_names), [text(name, 20) for name in class_names]
    longest = max(map(len, names))
    side = max(3.4, 0.42 * K) if K <= MANY else 6.0
    margin = min(0.075 * longest, 1.6)
    size = (side + margin + 0.7, side + (margin if longest > 2 else 0.1) + 0.75) if K <= MANY else (10.5, 6.6)
    figure = Figure(size, layout="constrained")
    ax = figure.subplots() if K <= MANY else figure.add_subplot(figure.add_gridspec(1, 2, width_ratios=(6, 4))[0])
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest" if K <= MANY else "antialiased")
    if K <= MANY:
        ax.set_xticks(range(K), names, rotation=90 if longest > 2 else 0, fontsize=9)
        ax.set_yticks(range(K), names, fontsize=9)
        for row, column in zip(*np.nonzero(matrix), strict=True):
            shade = "white" if shares[row, column] > 0.5 else INK
            number = matrix[row, column]
            text_size = 8 if number < 1000 else 6
            # Not in the layout: it would measure up to 1,600 numbers, for half a minute.
            ax.text(column, row, f"{number}", ha="center", va="center", color=shade, fontsize=text_size).set_in_layout(False)
    else:
        beside = figure.add_subplot(1, 5, (4, 5))
        beside.axis("off")
        beside.text(0, 1, _list(matrix, class_names), va="top", fontsize=9, color=INK, linespacing=1.5)
    ax.set(xlabel="prediction", ylabel="truth")
    heading(figure, title)
    save(figure, path)


def _list(matrix: Int[np.ndarray, "K K"], class_names: Sequence[str]) -> str:
    pairs = most_confused(matrix, 20)
    lines = [
        f"{p.times:,} ({p.share:.0%})  {text(class_names[p.truth], 18)} → {text(class_names[p.prediction], 18)}" for p in pairs
    ]
    return "\n".join(["Most often mistaken (share of the class)", *lines] if lines else ["No example was mistaken."])


def calibration(
    path: Any, count: Int[np.ndarray, "bins"], confidence: Float[np.ndarray, "bins"], hits: Int[np.ndarray, "bins"], title: str
) -> None:
    """Reliability diagram (arXiv 1706.04599) of equal bins of the top probability, with the number of examples beneath.

    `confidence` and `hits` are sums over a bin's examples, as `Classification.metrics` gives them.
    """
    middle, mean, accuracy = reliability(count, confidence, hits)
    width = 1 / len(count)
    figure = Figure((4.8, 5.4), layout="constrained")
    top, beneath = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--", label="perfect")
    top.bar(middle, accuracy, width * 0.94, color=BLUE, label="accuracy")
    full = count > 0
    gap = {"facecolor": "none", "hatch": "////", "edgecolor": ORANGE, "linewidth": 1}
    height, bottom = np.abs(mean - accuracy)[full], np.minimum(accuracy, mean)[full]
    top.bar(middle[full], height, width * 0.94, bottom=bottom, label="gap to confidence", **gap)
    top.set(ylabel="share that is right", ylim=(0, 1), xlim=(0, 1))
    top.legend(frameon=False, fontsize=8, loc="upper left")
    beneath.bar(middle, count, width * 0.94, color=PALE, edgecolor=BLUE)
    beneath.set(xlabel="confidence (probability of the predicted class)", ylabel="examples")
    beneath.ticklabel_format(axis="y", useOffset=False, style="plain")
    error = np.abs(hits - confidence).sum() / max(1, count.sum())
    heading(figure, f"{title}: calibration error {error:.1%}")
    save(figure, path)


def reliability(
    count: Int[np.ndarray, "bins"], confidence: Float[np.ndarray, "bins"], hits: Int[np.ndarray, "bins"]
) -> tuple[Float[np.ndarray, "bins"], Float[np.ndarray, "bins"], Float[np.ndarray, "bins"]]:
    """Of each bin: its middle, mean confidence and accuracy; the last two are 0 where a bin is empty."""
    n = np.maximum(count, 1)
    return (np.arange(len(count)) + 0.5) / len(count), confidence / n, hits / n
