"""What `vit check` leaves of a set with masks: lists of bad files and problems, and three pictures. Needs no jax."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure

from vit.data.folder import SPLITS, shown
from vit.data.maskcheck import MaskFindings
from vit.report import masks
from vit.report.check import sizes, table
from vit.report.draw import BLUE, INK, ORANGE, save, text

COLOURS = {"train": BLUE, "val": ORANGE, "test": "#4b9b6e"}
SHOWN = 12  # images with their masks
FILES = "classes.png, sizes.png, overlays.png, bad_files.csv, duplicates.csv, problems.csv"
MANY = 60  # classes; beyond that their names find no room


def write(folder: Path, findings: MaskFindings) -> None:
    """bad_files.csv, duplicates.csv, problems.csv, classes.png, sizes.png and overlays.png, anew."""
    found = findings.listing
    folder.mkdir(parents=True, exist_ok=True)
    bad = [[found.where(i), SPLITS[found.splits[i]], shown(found.names[i]), why] for i, why in sorted(found.bad.items())]
    table(folder / "bad_files.csv", ["file", "split", "image", "reason"], bad)
    at = [(found.where(i), SPLITS[found.splits[i]]) for i in range(len(found.pairs))]
    twins = [["exact", *at[i], *at[of]] for i, of, _ in findings.twins]
    table(folder / "duplicates.csv", ["kind", "file", "split", "of", "of_split"], twins)
    problems = [["fatal" if p.fatal else "warning", p.what, p.where, p.fix] for p in found.problems]
    problems += [["warning", "all of its mask is void", found.where(i), "check whether it should be"] for i in findings.empty]
    table(folder / "problems.csv", ["kind", "what", "where", "fix"], problems)
    save(shares(findings.pixels, found.class_names), folder / "classes.png")
    save(sizes(findings.sizes[findings.sizes[:, 0] > 0]), folder / "sizes.png")
    overlays(folder / "overlays.png", findings)


def shares(pixels: Int[np.ndarray, "3 K1"], class_names: list[str]) -> Figure:
    """Each class's share of a split's pixels that are not void, and void's share of all pixels."""
    K = len(class_names)
    rows = [k for k in range(len(SPLITS)) if pixels[k].sum()]
    figure: Any = Figure((7, 1.6 + 0.26 * (min(K, MANY) + 1)), layout="constrained")
    ax = figure.subplots()
    if not K or not rows:
        figure.suptitle("no mask could be read", fontsize=10.5, color=INK)
        return figure
    order = np.arange(K) if K <= MANY else np.argsort(-pixels[:, :K].sum(axis=0), kind="stable")[:MANY]
    thick = 0.8 / len(rows)
    for n, k in enumerate(rows):
        values = pixels[k, order] / max(1, pixels[k, :K].sum())
        values = 100 * np.append(values, pixels[k, K] / pixels[k].sum())
        where = np.arange(len(values)) + (n - (len(rows) - 1) / 2) * thick
        label = f"{SPLITS[k]}: {pixels[k].sum() / 1e6:,.1f} M pixels"
        ax.barh(where, values, 0.92 * thick, color=COLOURS[SPLITS[k]], label=label)
    ax.set_yticks(range(len(order) + 1), [*(text(class_names[k], 22) for k in order), "void"], fontsize=8)
    ax.set(xlabel="% of the pixels that are not void; void: of all", ylim=(len(order) + 0.6, -0.6))
    ax.legend(fontsize=8, loc="best")
    ax.set_axisbelow(True)
    ax.grid(alpha=0.25, axis="x")
    absent = int((pixels[:, :K].sum(axis=0) == 0).sum())
    title = f"{K:,} classes" + (f", {absent:,} of them on no pixel" if absent else "")
    ax.set_title(title + (f"; the {MANY} largest" if K > MANY else ""), fontsize=9, color=INK)
    return figure


def overlays(path: Path, findings: MaskFindings) -> None:
    """A dozen images, evenly spread over the set, beside themselves with their masks in colour."""
    found = findings.listing
    good = np.flatnonzero(findings.sizes[:, 0] > 0)
    some = good[np.linspace(0, len(good) - 1, min(SHOWN, len(good))).astype(int)] if found.class_names else []
    looks = [found.pair(int(i)) for i in some]
    pictures, labels = zip(*(masks.fitted(look.image, look.label) for look in looks), strict=True) if looks else ((), ())
    if pictures:
        masks.pairs(path, pictures, labels, [shown(name) for name in found.class_names], "Images, and their masks over them")
        return
    figure = Figure((5, 1))
    figure.suptitle("no pair could be read", fontsize=10.5, color=INK)
    save(figure, path)
