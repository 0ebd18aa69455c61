"""report.html: a run on one page that needs nothing but itself.

Everything comes from the files in the run's folder, so a page can be made again at any time, of a run that was stopped as well.
"""

import base64
import html
import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vit.errors import UserError
from vit.report import scores
from vit.report.curves import HEADLINES, best_validation
from vit.training.log import read_metrics
from vit.training.storage import write_atomically

# In the order of the page: what the run made of it first, what it was given last.
PICTURES = {
    "curves.png": "Loss, validation score and learning rate over the steps.",
    "confusion.png": "What was taken for what: rows are the truth, columns the prediction, shades the share of the row.",
    "top_losses.png": "The worst mistakes: the images on which the model lost most.",
    "val_predictions.png": "Validation images with their label and what the model says.",
    "worst_masks.png": "The images that lost most of the mean IoU: image, truth, prediction, errors in red.",
    "worst_boxes.png": "The images with the most boxes missed (left, over the truth) or wrong (right), in red.",
    "precision_recall.png": "How many of the boxes found are right, as more and more of those that are there are found.",
    "val_masks.png": "Some validation images: image, truth, prediction, errors in red.",
    "val_boxes.png": "Some validation images: their true boxes, and those that were found.",
    "calibration.png": "How often the model is right when it is so sure; on the diagonal it can be trusted.",
    "attention.png": "Where the model looks: attention rolled out over all blocks, and in the last one.",
    "train_batch.png": "A training batch as the model sees it, after augmentation, with its labels, masks or boxes.",
    "labels.png": "How many examples, pixels or boxes there are of each class.",
}
WIDE = {"curves.png", "attention.png", "worst_masks.png", "val_masks.png", "worst_boxes.png", "val_boxes.png"}
BY_CLASS = {
    "iou_per_class": "IoU",
    "accuracy_per_class": "pixels found",
    "boundary_f_per_class": "boundary F-score",
    "pq_per_class": "panoptic quality",
    "ap_per_class": "AP",
    "ap50_per_class": "AP50",
}
PLAIN = {"nll": "negative log-likelihood", "ece": "calibration error", "loss": "loss"}

STYLE = """
:root { color-scheme: light dark; --ink: #222; --soft: #666; --line: #ddd; --card: #f6f7f9; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #a0a0a0; --line: #3a3d42; --card: #22252a; --page: #16181c; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0; } .soft, figcaption { color: var(--soft); font-size: .9rem; } .warn { color: #c2410c; }
.cards { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; }
.card { background: var(--card); border-radius: .5rem; padding: .6rem .9rem; } .card b { display: block; font-size: 1.4rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; }
img { display: block; max-width: 100%; max-height: 90vh; margin: 0 auto; background: #fff; border-radius: .4rem; }
.span { grid-column: 1 / -1; } .span img { min-width: 44rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; } td { overflow-wrap: anywhere; }
details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; }
"""


@dataclass
class Run:
    """What the files of a run's folder say; what can't be read is named in `unreadable`."""

    name: str
    config: dict[str, str]
    environment: dict[str, Any]
    rows: list[dict[str, Any]]
    figures: dict[str, Any]
    classes: tuple[list[str], list[list[Any]]]
    pictures: dict[str, bytes]
    steps: list[int]
    unreadable: list[str] = field(default_factory=list)
    profile: dict[str, Any] = field(default_factory=dict)

    def split(self, name: str) -> dict[int, dict[str, Any]]:
        """The lines of metrics.jsonl of a split, by step; a step that ran again counts as it went the last time."""
        return {row["step"]: row for row in self.rows if row["split"] == name}

    def reached(self) -> int:
        """The last step that anything is known of."""
        return max([0, *self.steps, *(row["step"] for row in self.rows)])


def read(folder: Any) -> Run:
    """The run in a folder. Raises `UserError` if there is none."""
    if not (folder / "config.json").exists():
        raise UserError("there is no run here", str(folder), "give the folder of a run of train.py, as runs/digits-s0")
    unreadable: list[str] = []

    def loaded(name: str) -> dict[str, Any]:
        try:
            value = json.loads((folder / name).read_bytes()) if (folder / name).exists() else {}
        except ValueError:
            value = None
        if not isinstance(value, dict):
            unreadable.append(name)
        return value if isinstance(value, dict) else {}

    rows, figures = read_metrics(folder / "metrics.jsonl"), loaded("eval.json")
    last = [row for row in rows if row["split"] == "val"][-1:]
    known = figures or dict(*last)
    try:
        classes = class_table(folder / "predictions.npz", list(figures.get("per_class_accuracy", {})))
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile):
        unreadable.append("predictions.npz")
        classes = []
    head = ["class", "examples", "accuracy", "precision", "most often taken for"]
    if not classes:
        classes = [[name, "", share, "", ""] for name, share in known.get("per_class_accuracy", {}).items()]
    if by_class := [(told, known[name]) for name, told in BY_CLASS.items() if name in known]:
        head = ["class", *(told for told, _ in by_class)]
        classes = [[name, *(values[name] for _, values in by_class)] for name in by_class[0][1]]
    checkpoints = folder / "checkpoints"
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.exists() else []
    return Run(
        name=str(folder),
        config=dict(flat(loaded("config.json"))),
        environment=loaded("environment.json"),
        rows=rows,
        figures=figures,
        classes=(head, classes),
        pictures={name: (folder / name).read_bytes() for name in PICTURES if (folder / name).exists()},
        steps=sorted(int(name) for name in names if name.isdecimal()),
        profile=loaded("profile.json"),
        unreadable=unreadable,
    )


def flat(config: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """config.json as dotted names and texts; a part's kind stands under its own name."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield prefix + name, str(value.get("type", ""))
            yield from flat(value, f"{prefix}{name}.")
        elif name != "type":
            yield prefix + name, " ".join(map(str, value)) if isinstance(value, list) else str(value)


def class_table(path: Any, names: Sequence[str]) -> list[list[Any]]:
    """Of each class: name, examples, accuracy, precision, what it is most often taken for. Empty without predictions."""
    if not names or not path.exists():
        return []
    with np.load(io.BytesIO(path.read_bytes())) as saved:
        truth, guess = saved["labels"], saved["probabilities"].argmax(axis=1)
    matrix = scores.confusion_matrix(truth, guess, len(names))
    rows = []
    for k, (count, *shares, other) in enumerate(zip(*scores.per_class(matrix), strict=True)):
        known = [None if np.isnan(share) else float(share) for share in shares]
        rows.append([names[k], int(count), *known, f"{names[other]} ({matrix[k, other]})" if other >= 0 else ""])
    return rows


def report(folder: Any) -> None:
    """Write `report.html` into the run's folder."""
    run = read(folder)
    body = [f"<h1>{text(run.name)}</h1>", state(run), cards(run)]
    body += [f'<p class="warn">{text(name)} can\'t be read and was left out.</p>' for name in run.unreadable]
    shown = [figure(name, run.pictures[name]) for name in PICTURES if name in run.pictures]
    body.append(section("Pictures", f'<div class="pictures">{"".join(shown)}</div>' if shown else ""))
    body.append(section("Classes", table(*run.classes)))
    body.append(section("What took the time", profile(run)))
    body.append(section("What went wrong on the way", table(["step", "event"], events(run))))
    body.append(section("Environment", table(["", ""], [[k, v] for k, v in run.environment.items()])))
    body.append(folded("Every setting", table(["setting", "value"], list(map(list, run.config.items())))))
    write_atomically(folder / "report.html", document(run.name, body))


def state(run: Run) -> str:
    """A sentence: what was trained on what, and how far it came."""
    steps, reached = int(run.config.get("steps", 0)), run.reached()
    what = run.figures.get("dataset") or run.config.get("data.name") or run.config.get("data", "")
    where = f"finished after {reached:,} steps" if reached >= steps else f"stopped at step {reached:,} of {steps:,}"
    best = best_validation(run.rows)
    told = f"; best on validation {best[0]:.2%} at step {best[1]:,}" if best else ""
    kept = f"; checkpoints {', '.join(map(str, run.steps))}" if run.steps else ""
    return f"<p><b>{text(run.name)}</b>: {text(what)}, {where}{told}{kept}.</p>"


def events(run: Run) -> list[list[Any]]:
    """Updates that were skipped, and ways back to a checkpoint: step, and what happened."""
    rows = [row for row in run.rows if row["split"] == "event" or row.get("skipped")]
    facts = ("skipped", "rolled_back_to", "rollbacks")
    return [[row["step"], ", ".join(f"{name.replace('_', ' ')} {row[name]}" for name in facts if name in row)] for row in rows]


def profile(run: Run) -> str:
    """The operations that took most in the updates that were traced, if any were."""
    rows = [
        [row["operation"], row["share"], f"{row['ms']:.2f}", f"{row['calls']:g}"] for row in run.profile.get("operations", [])
    ]
    told = f'<p class="soft">Of {run.profile.get("steps", 0)} updates; on all threads or devices together.</p>'
    return told + table(["operation", "share", "ms an update", "calls"], rows) if rows else ""


def cards(run: Run) -> str:
    """The figures of the evaluation, large."""
    if not run.figures:
        return '<p class="soft">Not evaluated on the test split yet: what is shown is from training and validation.</p>'
    of = f"{run.figures.get('examples', 0):,} {run.figures.get('split', '')} examples, step {run.figures.get('step', 0):,}"
    found = [(key, label) for key, label in (HEADLINES | PLAIN).items() if run.figures.get(key) is not None]
    parts = [f'<div class="card">{text(label)}<b>{shown(run.figures[key], key)}</b></div>' for key, label in found]
    low, high = run.figures.get("top1_ci95") or (None, None)
    interval = f"; 95 % interval of top-1: {low:.2%} to {high:.2%}" if low is not None else ""
    return f'<div class="cards">{"".join(parts)}</div><p class="soft">{text(of)}{interval}</p>'


def shown(value: Any, key: str = "") -> str:
    """A figure as people write it: scores and shares in per cent."""
    if value is None:
        return ""
    return f"{value:.2%}" if key in HEADLINES else f"{value:.4f}" if isinstance(value, float) else str(value)


def text(value: Any) -> str:
    """Anything, safe to stand in HTML."""
    return html.escape(str(value))


def figure(name: str, png: bytes, caption: str = "") -> str:
    """A picture, inside the page."""
    caption, data = caption or PICTURES[name], base64.b64encode(png).decode()
    image = f'<img src="data:image/png;base64,{data}" alt="{text(title(name))}">'
    span = ' class="span"' if name in WIDE else ""  # on a phone these scroll instead of shrinking
    return f'<figure{span}><div class="wide">{image}</div><figcaption>{text(caption)}</figcaption></figure>'


def title(name: str) -> str:
    """`top_losses.png` → Top losses."""
    return name.removesuffix(".png").replace("_", " ").capitalize()


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows under a head; shares (floats) in per cent. Nothing without rows."""
    if not rows:
        return ""
    numbers = [all(isinstance(row[i], int | float) or row[i] in (None, "") for row in rows) for i in range(len(head))]
    kinds = [' class="number"' if number else "" for number in numbers]
    top = "".join(f'<th scope="col"{kind}>{text(name)}</th>' for name, kind in zip(head, kinds, strict=True))
    lines = []
    for row in rows:
        cells = "".join(f"<td{kind}>{cell(x)}</td>" for x, kind in zip(row, kinds, strict=True))
        lines.append(f"<tr>{cells}</tr>")
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def cell(x: Any) -> str:
    """A value in a table."""
    if x is None:
        return ""
    return f"{x:.1%}" if isinstance(x, float) else f"{x:,}" if isinstance(x, int) else text(x)


def section(heading: str, content: str) -> str:
    """A headed part of the page; nothing without content."""
    return f"<section><h2>{text(heading)}</h2>{content}</section>" if content else ""


def folded(heading: str, content: str) -> str:
    """A part that opens on a click."""
    return f"<details><summary>{text(heading)}</summary>{content}</details>" if content else ""


def document(heading: str, body: Sequence[str]) -> str:
    """The whole page."""
    phone = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<head><meta charset="utf-8">{phone}<title>{text(heading)}</title><style>{STYLE}</style></head>'
    return "\n".join(["<!doctype html>", f'<html lang="en">{head}<body>', *body, "</body></html>", ""])
