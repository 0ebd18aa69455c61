"""How many examples each split has of each class: a picture, and words."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vit.report.draw import BLUE, INK, save, text

MANY = 40  # classes; beyond that their names find no room


def labels(
    path: Any, labels_by_split: Mapping[str, Int[np.ndarray, "_"]], class_names: Sequence[str], unit: str = "examples"
) -> None:
    """How many examples each split has of each class; beyond 40 classes, the counts in falling order."""
    K = len(class_names)
    counts = {split: np.bincount(x, minlength=K) for split, x in labels_by_split.items()}
    sideways = K > 12 or max(map(len, class_names)) > 4
    bars = sideways and K <= MANY
    size = (4.3 * len(counts), 1.5 + 0.22 * K if bars else 3.3)
    figure = Figure(size, layout="constrained")
    for ax, (split, count) in zip(figure.subplots(1, len(counts), squeeze=False).flat, counts.items(), strict=True):
        _histogram(ax, count, class_names, sideways, unit)
        ax.set_title(f"{text(split)}: {count.sum():,} {unit}\n{extremes(count, class_names)}", fontsize=9, color=INK)
        ax.grid(alpha=0.25, axis="x" if bars else "y")
    save(figure, path)


def _histogram(ax: Axes, count: Int[np.ndarray, "K"], class_names: Sequence[str], sideways: bool, unit: str) -> None:
    K, names = len(count), [text(name, 22) for name in class_names]
    ax.set_axisbelow(True)
    if K > MANY:
        ax.fill_between(np.arange(1, K + 1), np.sort(count)[::-1], step="mid", color=BLUE, alpha=0.8)
        ax.set(xlabel="classes, the most frequent first", ylabel=unit, xlim=(1, K), ylim=(0, max(1, count.max()) * 1.05))
    elif sideways:
        ax.barh(range(K), count, color=BLUE)
        ax.set_yticks(range(K), names, fontsize=8)
        ax.set(xlabel=unit, ylim=(K - 0.4, -0.6))
    else:
        ax.bar(range(K), count, color=BLUE)
        ax.set_xticks(range(K), names)
        ax.set(ylabel=unit)


def extremes(count: Int[np.ndarray, "K"], class_names: Sequence[str]) -> str:
    """The rarest and the most frequent class in words, and how many classes have no example."""

    def told(n: int) -> str:
        those = np.flatnonzero(count == n)
        more = f" and {len(those) - 1} more" if len(those) > 1 else ""
        return f"“{text(class_names[those[0]], 16)}”{more}: {n:,}"

    present = count[count > 0]
    if not len(present):
        return "no examples"
    absent = int((count == 0).sum())
    if present.min() == present.max():
        words = f"{present.max():,} of each class"
    else:
        words = f"rarest {told(present.min())}\nmost frequent {told(present.max())}"
    return words + (f"; {absent:,} {'class has' if absent == 1 else 'classes have'} none" if absent else "")
