"""Several runs beside each other on one page."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vit.errors import UserError
from vit.report.page import (
    HEADLINES,
    PICTURES,
    PLAIN,
    document,
    figure,
    folded,
    read,
    section,
    shown,
    state,
    table,
    text,
    title,
)
from vit.training.storage import write_atomically

Rows = Mapping[int, Mapping[str, Any]]


def compare(folders: Sequence[Any], out: Path) -> None:
    """Write one page on several runs. Raises `UserError` if one of the folders holds no run or `out` can't be written."""
    runs = [read(folder) for folder in folders]
    names = [run.name for run in runs]
    figures = [[label, *(shown(run.figures.get(key), key) for run in runs)] for key, label in (HEADLINES | PLAIN).items()]
    figures = [row for row in figures if any(row[1:])]
    settings = {key: [run.config.get(key, "") for run in runs] for run in runs for key in run.config}
    differing = [[key, *values] for key, values in settings.items() if len(set(values)) > 1 and key != "workdir"]
    equal = [[key, values[0]] for key, values in settings.items() if len(set(values)) == 1]
    body = ["<h1>" + " and ".join(map(text, names)) + "</h1>", *map(state, runs)]
    body.append(section("Figures", table(["", *names], figures)))
    body.append(section("Settings that differ", table(["setting", *names], differing)))
    curves = overlaid_curves({run.name: (run.split("train"), run.split("val")) for run in runs})
    body.append(section("Curves", figure("curves.png", curves, "Loss and validation score of each run.") if curves else ""))
    for name in [name for name in PICTURES if name != "curves.png"]:
        beside = [figure(name, run.pictures[name], run.name) for run in runs if name in run.pictures]
        said = f'<p class="soft">{text(PICTURES[name])}</p>'
        body.append(section(title(name), f'{said}<div class="pictures">{"".join(beside)}</div>' if beside else ""))
    body.append(folded("Settings that are the same", table(["setting", "value"], equal)))
    try:
        write_atomically(out, document(" and ".join(names), body))
    except OSError as error:
        what = f"the report can't be written: {error.strerror}"
        raise UserError(what, str(out), "give another file, as --out report.html") from error


def overlaid_curves(runs: Mapping[str, tuple[Rows, Rows]]) -> bytes:
    """A picture of training loss, validation loss and validation score of each run (its lines by step)."""
    scores = [key for key in ("top1", "miou", "ap50") if any(key in row for _, val in runs.values() for row in val.values())]
    panels = [
        ("loss", 0, "training loss"),
        ("loss", 1, "validation loss"),
        *[(key, 1, f"validation {key}") for key in scores[:1]],
    ]
    drawn = Figure((4.2 * len(panels), 3.6), layout="constrained")
    for ax, (key, part, heading) in zip(drawn.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        for name, rows in runs.items():
            points = [(step, row[key]) for step, row in sorted(rows[part].items()) if row.get(key) is not None]
            if points:
                ax.plot(*zip(*points, strict=True), label=name.replace("$", r"\$"), marker="." if len(points) < 40 else None)
        ax.set(title=heading, xlabel="step")
        ax.grid(alpha=0.25)
    lines, names = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(lines, names, loc="outside lower center", frameon=False, ncols=max(1, 3 if len(names) > 2 else len(names)))
    png = io.BytesIO()
    FigureCanvasAgg(drawn).print_png(png)
    return png.getvalue()
