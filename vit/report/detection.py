"""The pictures, arrays and lines of the table that a detection's training and evaluation give."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from vit.config import NOBODY, Config
from vit.data.augment import to_pixels
from vit.data.batches import Batches
from vit.data.boxes import BoxImages
from vit.report import boxes, counts, scores
from vit.report.curves import COLOURS
from vit.report.draw import INK, PALE, heading, row, save, text
from vit.tasks import boxscores
from vit.training.state import example_keys
from vit.training.storage import write_atomically

SHOWN = 12  # examples in a picture
COUNTED = 100  # images of each split, for the boxes of the classes
LINES = 12  # classes with names in the picture of precision and recall


def beginning(run: Any, task: Any, config: Config, batches: Batches, prepare: Any, sources: dict[str, Any]) -> None:
    """`train_batch.png`: the first batch as the model sees it, augmented, with its boxes; `labels.png`: the classes' boxes."""
    batch = next(batches.starting_at(0))
    keys = example_keys(config.seed, jnp.zeros((), jnp.int32), jnp.asarray(batch["id"]))
    seen = jax.jit(prepare)({name: jnp.asarray(x) for name, x in batch.items()}, keys)
    images = np.asarray(to_pixels(seen["image"][:16], config.data))
    rows = zip(images, *(np.asarray(seen[name]) for name in ("boxes", "label", "crowd")), strict=False)
    those = []
    for image, places, label, crowd in rows:
        real, sides = label != NOBODY, np.tile(image.shape[:2], 2)
        words = boxes.told(task.class_names, label[real])
        those.append(boxes.drawing(image, places[real] * sides, label[real], words, crowd=crowd[real]))
    boxes.sheet(run / "train_batch.png", those, task.class_names, "A training batch as the model sees it, with its boxes")
    kinds = {name: _kinds(source) for name, source in sources.items()}
    listed = all(isinstance(source, BoxImages) for source in sources.values())
    counts.labels(run / "labels.png", kinds, task.class_names, "boxes" if listed else f"boxes of up to {COUNTED} images")


def watch(task: Any, prepare: Any, source: Any, mesh: Any) -> Callable[[dict[str, Any]], Any]:
    """Nothing beside the examples."""
    return lambda params: None


def arrays(task: Any, examples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What predictions.npz holds: `example_ids` and `sizes`, and of all boxes together `boxes`, `kinds`, `scores`.

    Boxes are y0 x0 y1 x1 in pixels of the image's own size; `of` says to which example each belongs, by its place. The true
    ones have the same under `true_of`, `true_boxes` and so on.
    """
    named = {"example_ids": examples["id"], "sizes": examples["size"]}
    for prefix, every in (("", examples["found"]), ("true_", examples["truth"])):
        named[f"{prefix}of"] = np.repeat(np.arange(len(every)), [len(those["kinds"]) for those in every])
        named |= {prefix + name: np.concatenate([those[name] for those in every]) for name in every[0]}
    return named


def validation(run: Any, task: Any, seen: dict[str, Any], source: Any, title: str) -> None:
    """`val_boxes.png`: some examples, evenly spread: neighbours may be frames of one film."""
    count, threshold = len(seen["examples"]["id"]), seen["figures"]["threshold"]
    some = np.linspace(0, count - 1, min(SHOWN, count)).astype(int)
    told = f"{title}, {_told(seen['figures'])}: some examples, boxes of {threshold:.2f} and more, missed and wrong ones in red"
    _rows(run / "val_boxes.png", seen["examples"], some, threshold, source, task.class_names, told)


def evaluation(run: Any, task: Any, examples: dict[str, np.ndarray], figures: dict[str, Any], source: Any, title: str) -> None:
    """All of the split: `worst_boxes.png`, `precision_recall.png`, `confusion.png`, truth.json, predictions.json."""
    truth, found, threshold = list(examples["truth"]), list(examples["found"]), figures["threshold"]
    errors = [sum(_errors(t, boxscores.above(f, threshold))) for t, f in zip(truth, found, strict=True)]
    worst = np.argsort(-np.array(errors), kind="stable")[:SHOWN]
    told = f"{title}, {_told(figures)}: most boxes missed (left) or wrong (right) at {threshold:.2f}, in red"
    _rows(run / "worst_boxes.png", examples, worst, threshold, source, task.class_names, told)
    precision = boxscores.curves(truth, found, len(task.class_names))
    _precision_recall(run / "precision_recall.png", precision, figures, task.class_names, f"{title}: {_told(figures)}")
    matrix = boxscores.confusion(truth, found, len(task.class_names), threshold)
    told = f"{title}: boxes of {threshold:.2f} and more; background: missed, or where nothing is"
    scores.confusion(run / "confusion.png", matrix, [*task.class_names, "background"], told)
    _as_coco(run, task, examples, source)


def _as_coco(run: Any, task: Any, examples: dict[str, np.ndarray], source: Any) -> None:
    """truth.json and predictions.json, with the ids of the set's own JSON if it has one."""
    ids, kinds, files = examples["id"].tolist(), list(range(1, len(task.class_names) + 1)), []
    if isinstance(source, BoxImages):
        files, ids = ([those[i] for i in ids] for those in (source.listing.names, source.listing.image_ids))
        kinds = source.listing.class_ids
    truth = boxscores.to_coco(list(examples["truth"]), examples["size"], task.class_names, ids, kinds, files)
    for name, content in (("truth", truth), ("predictions", boxscores.to_results(list(examples["found"]), ids, kinds))):
        write_atomically(run / f"{name}.json", json.dumps(content, allow_nan=False) + "\n")


def lines(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Figures for people, in per cent, every class among them."""
    yield "images", f"{figures['examples']:,}"
    yield "boxes", f"{figures['boxes']:,}"
    names = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "AP of small ones", "ap_medium": "AP of medium ones"}
    names |= {"ap_large": "AP of large ones", "ar100": "recall of 100 boxes", "f1": "F-score at the threshold"}
    for name, label in names.items():
        if figures.get(name) is not None:
            yield label, f"{figures[name]:.2%}"
    yield "threshold", f"{figures['threshold']:.3f}"
    for name, score in figures["ap_per_class"].items():
        yield f"AP, AP50 of {name}", "–" if score is None else f"{score:.2%}, {figures['ap50_per_class'][name]:.2%}"


def _kinds(source: Any) -> Int[np.ndarray, "_"]:
    """The classes of a split's boxes; where the boxes come with the images, of some of them, evenly spread."""
    if isinstance(source, BoxImages):
        return np.concatenate([source.listing.boxes[i].kinds for i in source.ids])
    some = np.linspace(0, len(source) - 1, min(COUNTED, len(source))).astype(int)
    found = np.concatenate([source[int(i)]["label"] for i in some])
    return found[found != NOBODY]


def _told(figures: dict[str, Any]) -> str:
    return f"AP {figures['ap']:.2%}, AP50 {figures['ap50']:.2%}"


def _errors(truth: boxscores.Boxes, found: boxscores.Boxes) -> tuple[int, int]:
    """How many boxes of an image are missed, and how many wrong."""
    pair, ignored = boxscores.verdict(truth, found)
    return int(boxscores.missed(truth, pair).sum()), int(np.sum((pair < 0) & ~ignored))


def _rows(
    path: Any,
    examples: dict[str, np.ndarray],
    places: Iterable[int],
    threshold: float,
    source: Any,
    names: list[str],
    title: str,
) -> None:
    those = []
    for i in map(int, places):
        truth, found = examples["truth"][i], boxscores.above(examples["found"][i], threshold)
        example = row(source, examples["id"], i)
        h, w = example["content"]
        image, shrunk = example["image"][:h, :w], np.tile(np.array([h, w]) / examples["size"][i], 2)
        pair, ignored = boxscores.verdict(truth, found)
        missed, wrong = boxscores.missed(truth, pair), (pair < 0) & ~ignored
        left = {"odd": missed, "crowd": truth["crowd"]}
        left = boxes.drawing(image, truth["boxes"] * shrunk, truth["kinds"], boxes.told(names, truth["kinds"]), **left)
        words = boxes.told(names, found["kinds"], found["scores"])
        right = boxes.drawing(image, found["boxes"] * shrunk, found["kinds"], words, odd=wrong)
        said = f"{missed.sum()} of {np.sum(~truth['crowd'])} missed", f"{wrong.sum()} of {len(wrong)} wrong"
        those.append(boxes.Row(left, right, *said))
    boxes.rows(path, those, names, title)


def _precision_recall(
    path: Any, precision: Float[np.ndarray, "K R"], figures: dict[str, Any], class_names: list[str], title: str
) -> None:
    """Precision over recall at IoU 0.5: each class, the worst first in the list, and their mean; of many, twelve are named."""
    figure = Figure((7.2, 4.6), layout="constrained")
    ax, at = figure.subplots(), np.linspace(0, 1, precision.shape[1])
    known = np.flatnonzero(~np.isnan(precision[:, 0]))
    order = known[np.argsort(precision[known].mean(axis=1), kind="stable")]
    for n, k in enumerate(order):
        look: dict[str, Any] = {"color": PALE, "zorder": 1}
        if n < LINES:
            look = {"color": COLOURS[n % len(COLOURS)], "linestyle": ("-", "--")[n // len(COLOURS)]}
            look["label"] = f" {text(class_names[k], 22)}: {precision[k].mean():.1%}"
        ax.plot(at, precision[k], linewidth=1.2, **look)
    if len(known):
        ax.plot(at, precision[known].mean(axis=0), color=INK, linewidth=2.4, label=f" mean: {precision[known].mean():.1%}")
        ax.plot(figures["recall"], figures["precision"], "o", color=INK, label=f" all, {figures['threshold']:.2f} and more")
        more = f"\n(the {LINES} worst of {len(known):,})" if len(known) > LINES else ""
        figure.legend(loc="outside right upper", frameon=False, fontsize=8, title=f"AP at IoU 0.5{more}", title_fontsize=8)
    ax.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01))
    ax.grid(alpha=0.25)
    heading(figure, title)
    save(figure, path)
