"""The pictures, arrays and lines of the table that a segmentation's training and evaluation give."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from vit.config import Config
from vit.data.augment import to_pixels
from vit.data.batches import Batches
from vit.report import counts, masks, scores
from vit.report.draw import row
from vit.report.masks import VOID
from vit.tasks.segmentation import confusion
from vit.training.state import example_keys

SHOWN = 12  # examples in a picture
COUNTED = 100  # of each split, for the shares of the classes


def beginning(run: Any, task: Any, config: Config, batches: Batches, prepare: Any, sources: dict[str, Any]) -> None:
    """`train_batch.png`: the first batch as the model sees it, augmented, with its masks; `labels.png`: the classes' pixels."""
    batch = next(batches.starting_at(0))
    keys = example_keys(config.seed, jnp.zeros((), jnp.int32), jnp.asarray(batch["id"]))
    seen = jax.jit(prepare)({name: jnp.asarray(x) for name, x in batch.items()}, keys)
    images, truth = np.asarray(to_pixels(seen["image"][:16], config.data)), np.asarray(seen["label"][:16])
    title = "A training batch as the model sees it, and with its masks over it"
    masks.pairs(run / "train_batch.png", list(images), list(truth), task.class_names, title)
    pixels = {}
    for name, source in sources.items():
        some = np.linspace(0, len(source) - 1, min(COUNTED, len(source))).astype(int)
        found = np.concatenate([source[int(i)]["label"][::2, ::2].ravel() for i in some])
        pixels[name] = found[found != VOID]
    counts.labels(run / "labels.png", pixels, task.class_names, "pixels of those looked at")


def watch(task: Any, prepare: Any, source: Any, mesh: Any) -> Callable[[dict[str, Any]], Any]:
    """Nothing beside the examples."""
    return lambda params: None


def arrays(task: Any, examples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What predictions.npz holds: `example_ids`, the mean `iou` of each example, and `predicted_ID`, its pixels' classes."""
    predicted = {f"predicted_{i}": decoded(x) for i, x in zip(examples["id"], examples["predicted"], strict=True)}
    return {"example_ids": examples["id"], "iou": examples["iou"], **predicted}


def validation(run: Any, task: Any, seen: dict[str, Any], source: Any, title: str) -> None:
    """`val_masks.png`: some examples, evenly spread: neighbours may be frames of one film."""
    count, told = len(seen["examples"]["id"]), f"{title}, {_told(seen['figures'])}: some examples"
    some = np.linspace(0, count - 1, min(SHOWN, count)).astype(int)
    _rows(run / "val_masks.png", seen["examples"], some, source, task.class_names, told)


def evaluation(run: Any, task: Any, examples: dict[str, np.ndarray], figures: dict[str, Any], source: Any, title: str) -> None:
    """`worst_masks.png` and `confusion.png`: all of the split."""
    worst = np.argsort(examples["iou"], kind="stable")[:SHOWN]
    told = f"{title}, {_told(figures)}: the worst examples first"
    _rows(run / "worst_masks.png", examples, worst, source, task.class_names, told)
    K = len(task.class_names)
    matrix = np.zeros((K, K), np.int64)
    for t, p in zip(examples["truth"], examples["predicted"], strict=True):
        matrix += confusion(decoded(t), decoded(p), K)
    shares = np.round(100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)).astype(int)
    scores.confusion(run / "confusion.png", shares, task.class_names, f"{title}: per cent of each class's pixels")


def lines(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Figures for people, in per cent, every class among them."""
    yield "images", f"{figures['examples']:,}"
    yield "pixels", f"{figures['pixels']:,}"
    names = {"miou": "mean IoU", "pixel_accuracy": "pixel accuracy", "mean_accuracy": "mean of the classes' accuracies"}
    names |= {"boundary_f": "boundary F-score", "pq": "panoptic quality", "ap": "mask AP", "ap50": "mask AP50"}
    for name, label in names.items():
        if figures.get(name) is not None:
            yield label, f"{figures[name]:.2%}"
    for name, score in figures["iou_per_class"].items():
        yield f"IoU of {name}", "–" if score is None else f"{score:.2%}"


def decoded(png: bytes) -> UInt8[np.ndarray, "H W"]:
    """A mask that the task kept."""
    return np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED))


def _told(figures: dict[str, Any]) -> str:
    return f"mean IoU {figures['miou']:.2%}"


def _rows(path: Any, examples: dict[str, np.ndarray], places: Iterable[int], source: Any, names: list[str], title: str) -> None:
    those = []
    for i in map(int, places):
        truth, predicted = decoded(examples["truth"][i]), decoded(examples["predicted"][i])
        example = row(source, examples["id"], i)
        h, w = example["content"]
        image = cv2.resize(example["image"][:h, :w], truth.shape[::-1]).reshape(*truth.shape, -1)
        those.append(masks.Row(image, truth, predicted, f"IoU {examples['iou'][i]:.1%}"))
    masks.rows(path, those, names, title)
