"""What `vit check` leaves of a set with boxes: lists of bad files and problems, and four pictures. Needs no jax."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from vit.data.boxcheck import LARGE, SMALL, BoxFindings
from vit.data.folder import SPLITS, shown
from vit.report import boxes, counts
from vit.report.check import sizes, table
from vit.report.draw import BLUE, INK, ORANGE, save

SHOWN = 12  # images with their boxes
FILES = "classes.png, sizes.png, box_sizes.png, boxes.png, bad_files.csv, duplicates.csv, problems.csv"


def write(folder: Path, findings: BoxFindings) -> None:
    """bad_files.csv, duplicates.csv, problems.csv, classes.png, sizes.png, box_sizes.png and boxes.png, anew."""
    found = findings.listing
    folder.mkdir(parents=True, exist_ok=True)
    at = [(found.where(i), SPLITS[found.splits[i]]) for i in range(len(found.names))]
    table(folder / "bad_files.csv", ["file", "split", "reason"], [[*at[i], why] for i, why in sorted(found.bad.items())])
    twins = [["exact", *at[i], *at[of]] for i, of, _ in findings.twins]
    table(folder / "duplicates.csv", ["kind", "file", "split", "of", "of_split"], twins)
    problems = [["fatal" if p.fatal else "warning", p.what, p.where, p.fix] for p in found.problems]
    problems += [["dropped" if findings.config.bad_boxes == "drop" else "fatal", p.what, p.where, p.fix] for p in found.flaws]
    table(folder / "problems.csv", ["kind", "what", "where", "fix"], problems)
    K, names = len(found.class_names), [shown(name) for name in found.class_names]
    present = {SPLITS[k]: np.repeat(np.arange(K), row) for k, row in enumerate(findings.counts) if row.sum()}
    if present:
        counts.labels(folder / "classes.png", present, names, "boxes")
    else:
        _empty(folder / "classes.png", "there are no boxes")
    save(sizes(findings.sizes[findings.sizes[:, 0] > 0]), folder / "sizes.png")
    save(box_sizes(findings.sides), folder / "box_sizes.png")
    pictures(folder / "boxes.png", findings)


def box_sizes(sides: Float[np.ndarray, "m 2"]) -> Figure:
    """How large boxes are, as the sides of squares of their areas, and how long for their width."""
    figure: Any = Figure((9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    if not len(sides):
        figure.suptitle("no image with boxes could be decoded", fontsize=10.5, color=INK)
        return figure
    side = np.sqrt(np.prod(sides, axis=1))
    left.hist(side, np.geomspace(side.min() * 0.98, side.max() * 1.02, 41), color=BLUE)
    left.set(xscale="log", xlabel="side of a square of the box's area, in pixels", ylabel="boxes")
    for limit, words in ((SMALL, "small below"), (LARGE, "large from")):
        left.axvline(limit, color=ORANGE, linewidth=1, label=f"{words} {limit}")
    left.legend(fontsize=8, loc="best")
    ratios = np.clip(sides[:, 1] / sides[:, 0], 1 / 8, 8)
    right.hist(ratios, np.geomspace(0.12, 8.4, 41), color=BLUE)
    right.set(xscale="log", xlabel="width ÷ height, those beyond 8 at the ends", ylabel="boxes")
    marks = {1 / 8: "1:8", 1 / 4: "1:4", 1 / 2: "1:2", 1: "1:1", 2: "2:1", 4: "4:1", 8: "8:1"}
    right.set_xticks(list(marks), list(marks.values()), fontsize=8)
    right.minorticks_off()
    for ax in (left, right):
        ax.set_axisbelow(True)
        ax.grid(alpha=0.25, axis="y")
    left.set_title(f"{len(sides):,} boxes, median {np.median(side):,.0f} pixels", fontsize=9, color=INK)
    right.set_title(f"{np.mean((ratios > 0.5) & (ratios < 2)):.0%} between 1:2 and 2:1", fontsize=9, color=INK)
    return figure


def pictures(path: Path, findings: BoxFindings) -> None:
    """A dozen images, evenly spread over the set, with their boxes."""
    found = findings.listing
    good = [i for i in np.flatnonzero(findings.sizes[:, 0] > 0).tolist() if len(found.boxes[i].kinds)]
    drawings = []
    for i in np.array(good)[np.linspace(0, len(good) - 1, min(SHOWN, len(good))).astype(int)].tolist() if good else ():
        image, (corners, kinds, crowd, _) = found.pair(i)
        corners = corners * np.tile(image.shape[:2], 2)
        words = boxes.told(found.class_names, kinds)
        drawings.append(boxes.drawing(image, corners, kinds, words, crowd=crowd))
    if drawings:
        boxes.sheet(path, drawings, [shown(name) for name in found.class_names], "Images with their boxes")
    else:
        _empty(path, "no image with boxes could be read")


def _empty(path: Path, words: str) -> None:
    figure = Figure((5, 1))
    figure.suptitle(words, fontsize=10.5, color=INK)
    save(figure, path)
