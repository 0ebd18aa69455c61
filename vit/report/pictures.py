"""The pictures of a run. Only this room draws; everything else returns arrays."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vit.config import Config
from vit.data.augment import to_pixels
from vit.data.batches import Batches
from vit.training.log import read_metrics
from vit.training.state import example_keys
from vit.training.storage import write_atomically

BLUE, ORANGE, INK = "#2563a8", "#d9730d", "#333333"


def train_batch(path: Path, batches: Batches, prepare: Any, config: Config, class_names: Sequence[str]) -> None:
    """The first images of the first training batch, at most 64, as the model sees them: augmented, with their labels."""
    batch = next(batches.starting_at(0))
    keys = example_keys(config.seed, jnp.zeros((), jnp.int32), jnp.asarray(batch["id"]))
    seen = prepare({name: jnp.asarray(x) for name, x in batch.items()}, keys)
    images = np.asarray(to_pixels(seen["image"][:64], config.data))
    titles = [class_names[int(label)] for label in batch["label"]]
    if "partner" in seen:
        others = (class_names[int(label)] for label in seen["partner"])
        mixed = zip(titles, others, np.asarray(seen["share"]), strict=True)
        titles = [f"{own} {share:.0%}\n{other}" for own, other, share in mixed]
    columns = 8
    rows = -(-len(images) // columns)
    figure = Figure((columns * 1.1, rows * 1.25), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.axis("off")
    for ax, image, title in zip(axes, images, titles, strict=False):
        ax.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
        ax.set_title(title, fontsize=9 if "partner" not in seen else 7, color=INK, pad=2)
    _save(figure, path)


def curves(run: Path) -> None:
    """`curves.png`: loss, validation score and learning rate over the steps in metrics.jsonl."""
    rows = read_metrics(run / "metrics.jsonl")
    # A step that ran again after a roll-back counts as it went the last time.
    train, val = ({r["step"]: r for r in rows if r["split"] == split} for split in ("train", "val"))
    if not train and not val:
        return
    score = next((name for name in ("top1", "miou", "ap50") if any(name in r for r in val.values())), None)
    panels = [("loss", "loss"), *([(score, f"validation {score}")] if score else []), ("lr", "learning rate")]
    figure = Figure((4.2 * len(panels), 3.4), layout="constrained")
    for ax, (name, title) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        for label, points, colour in (("train", train, BLUE), ("validation", val, ORANGE)):
            known = [(step, row[name]) for step, row in sorted(points.items()) if row.get(name) is not None]
            if known:
                marker = "." if points is val and len(known) < 40 else None
                ax.plot(*zip(*known, strict=True), color=colour, label=label, marker=marker)
        ax.set(title=title, xlabel="step")
        ax.grid(alpha=0.25)
        if name == "loss" and ax.lines:
            ax.legend(frameon=False)
            ax.set_yscale("log")
        if name == score and val:
            best_step, best = max(((s, r[name]) for s, r in val.items()), key=lambda point: point[1])
            ax.set_title(f"{title}: best {best:.2%} at step {best_step:,}")
    _save(figure, run / "curves.png")


def confusion(path: Path, matrix: np.ndarray, class_names: Sequence[str], title: str) -> None:
    """Confusion matrix: rows are the truth, columns the prediction; shades are shares of the row."""
    K = len(class_names)
    side = min(20.0, max(4.2, 0.5 * K + 1.5))
    figure = Figure((side, side), layout="constrained")
    ax = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if K <= 40:
        ax.set_xticks(range(K), class_names, rotation=90 if max(map(len, class_names)) > 2 else 0)
        ax.set_yticks(range(K), class_names)
        for row, column in zip(*np.nonzero(matrix), strict=True):
            shade = "white" if shares[row, column] > 0.5 else INK
            ax.text(column, row, f"{matrix[row, column]}", ha="center", va="center", color=shade, fontsize=8)
    ax.set(title=title, xlabel="prediction", ylabel="truth")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    write_atomically(path, png.getvalue())
