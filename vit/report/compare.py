"""Several runs beside each other on one page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit.errors import UserError
from vit.report.curves import HEADLINES, overlaid
from vit.report.page import (
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
    curves = overlaid({run.name: run.rows for run in runs})
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
