"""What `vit check` leaves: lists of bad files, copies and problems, and two pictures. Needs no jax."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure

from vit.data.check import Findings
from vit.data.folder import SPLITS, Listing, shown
from vit.errors import UserError
from vit.report import counts
from vit.report.draw import BLUE, INK, ORANGE, save
from vit.training.storage import write_atomically

FILES = "classes.png, sizes.png, bad_files.csv, duplicates.csv, problems.csv"


def place(data: str, out: str, *others: str) -> Path:
    """The folder for the findings, `check-NAME` unless another is wanted. Raises `UserError` if it lies in the data set.

    `data` is a folder, or a file of annotations in one; the set may have `others` besides.
    """
    root = Path(data).expanduser()
    name = root.resolve().stem if root.exists() else data.rstrip("/").rpartition("/")[2]
    folder = Path(out).expanduser() if out else Path(f"check-{shown(name) or 'images'}")
    file = root.resolve() if root.is_file() else None
    home = root.resolve() if file is None else file.parent.parent if file.parent.name == "annotations" else file.parent
    homes = [home, *(Path(other).expanduser().resolve() for other in others if other)]
    if root.exists() and any(folder.resolve().is_relative_to(home) for home in homes):
        what = "the findings would lie in the data set, where nothing is ever changed"
        raise UserError(what, shown(str(folder)), "give another folder: --out FOLDER")
    if folder.exists() and not folder.is_dir():
        raise UserError("the findings need a folder, this is a file", shown(str(folder)), "give another place: --out FOLDER")
    return folder


def write(folder: Path, findings: Findings) -> None:
    """bad_files.csv, duplicates.csv, problems.csv, classes.png and sizes.png, anew."""
    found = findings.listing
    folder.mkdir(parents=True, exist_ok=True)
    bad = [[found.where(i), *_place(found, i), why] for i, why in sorted(found.bad.items())]
    table(folder / "bad_files.csv", ["file", "split", "class", "reason"], bad)
    twins = [
        ["exact" if exact else "near", found.where(i), *_place(found, i), found.where(of), *_place(found, of)]
        for i, of, exact in findings.twins
    ]
    table(folder / "duplicates.csv", ["kind", "file", "split", "class", "of", "of_split", "of_class"], twins)
    problems = [["fatal" if p.fatal else "warning", p.what, p.where, p.fix] for p in found.problems]
    table(folder / "problems.csv", ["kind", "what", "where", "fix"], problems)
    labels = {split: found.labels[found.splits == i] for i, split in enumerate(SPLITS)}
    present = {split: those for split, those in labels.items() if len(those)}
    counts.labels(folder / "classes.png", present, [shown(name) for name in found.class_names])
    save(sizes(findings.sizes[findings.sizes[:, 0] > 0]), folder / "sizes.png")


def _place(found: Listing, i: int) -> tuple[str, str]:
    return SPLITS[found.splits[i]], shown(found.class_names[found.labels[i]])


def table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_atomically(path, text.getvalue())


def sizes(hw: Int[np.ndarray, "B 2"]) -> Figure:
    """How wide and high images are, and how long for their width."""
    figure: Any = Figure((9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    if not len(hw):
        figure.suptitle("no image could be decoded", fontsize=10.5, color=INK)
        return figure
    low, high = hw.min(), hw.max()
    bins = np.geomspace(low * 0.98, high * 1.02, 31)
    for values, name, colour in ((hw[:, 1], "width", BLUE), (hw[:, 0], "height", ORANGE)):
        label = f"{name}: {values.min():,} to {values.max():,}, median {np.median(values):,.0f}"
        left.hist(values, bins, color=colour, alpha=0.55, label=label)
    left.set(xscale="log", xlabel="pixels", ylabel="images")
    ticks = [value for n in range(20) for value in (2**n, 2**n * 3 // 2) if low * 0.9 <= value <= high * 1.1]
    ticks = ticks[:: -(-len(ticks) // 8)] if len(ticks) > 1 else sorted({low, high})
    left.set_xticks(ticks, [f"{value:,}" for value in ticks], fontsize=8)
    left.minorticks_off()
    left.legend(fontsize=8, loc="best")
    ratios = np.clip(hw[:, 1] / hw[:, 0], 1 / 4, 4)
    right.hist(ratios, np.geomspace(0.24, 4.2, 41), color=BLUE)
    right.set(xscale="log", xlabel="width ÷ height, those beyond 4 at the ends", ylabel="images")
    marks = {1 / 4: "1:4", 1 / 2: "1:2", 3 / 4: "3:4", 1: "1:1", 4 / 3: "4:3", 2: "2:1", 4: "4:1"}
    right.set_xticks(list(marks), list(marks.values()), fontsize=8)
    right.minorticks_off()
    for ax in (left, right):
        ax.set_axisbelow(True)
        ax.grid(alpha=0.25, axis="y")
    left.set_title(f"{len(hw):,} images", fontsize=9, color=INK)
    share = np.mean((ratios > 3 / 4.01) & (ratios < 4.01 / 3))
    right.set_title(f"{share:.0%} between 3:4 and 4:3", fontsize=9, color=INK)
    return figure
