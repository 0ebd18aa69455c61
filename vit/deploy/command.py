"""`vit predict`: a line an image, predictions.csv and predictions.jsonl, pictures on request."""

import csv
import json
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vit.data.decode import BadImage
from vit.deploy.images import find, pixels
from vit.errors import Stopped, UserError
from vit.flags import parse
from vit.limits import Share
from vit.training.stop import Stop

TOP = 5  # classes in a line
ALL = 100  # classes up to which predictions.jsonl has the probability of each
PICTURES = "predictions"  # the folder of pictures in --out


@dataclass(frozen=True)
class Asked:
    """What `vit predict` is told beside the images."""

    workdir: str = ""
    """Folder of the run whose model predicts."""
    checkpoint: str = "last"
    """last, best (by validation), or a step."""
    out: str = ""
    """The folder of predictions.csv, predictions.jsonl and the pictures. Default: the current one."""
    save_images: bool = False
    """Save each image with what the model says of it: beside it, or its mask or boxes over it."""
    threshold: Share = 0.0
    """Of a detection: the least score of a box that is told of; 0: the best by validation."""
    attention: bool = False
    """Save each image with where the model looks: attention rollout, and each head of one block."""
    block: int = -1
    """The block whose heads --attention shows: 0 is the first, -1 the last."""


def predict(args: Sequence[str], stop: Stop | None = None) -> None:
    """`vit predict --workdir RUN SOURCE…`.

    Raises `UserError` for a mistake, at the end also if some files couldn't be read; `Stopped` when it was asked to stop.
    """
    sources, flags = split(args)
    asked = parse(flags, Asked(), "Predict images: files, folders, 'patterns*.jpg', or - for paths on stdin.")
    if not asked.workdir:
        raise UserError("--workdir is missing", "the command line", "give the folder of a run, as --workdir runs/digits-s0")
    out = Path(asked.out or ".").expanduser()
    if not asked.out:
        _keep_out_of_the_images(sources, out)
    paths = find(sources, without=out / PICTURES)
    bar_shown = sys.stderr.isatty()
    total = None if "-" in sources or not bar_shown else sum(1 for _ in find(sources, without=out / PICTURES))

    # Here and not above: a mistake in the sources is answered at once.
    from vit.deploy.predict import load

    predictor = load(asked.workdir, asked.checkpoint)
    for warning in predictor.trained.warnings:
        print(f"warning: {warning}; step {predictor.trained.step} is used", file=sys.stderr)
    if asked.threshold and not hasattr(predictor, "threshold"):
        raise UserError("only a detection has a threshold", asked.workdir, "leave --threshold out")
    kind = _kind(predictor)(asked, predictor, out / PICTURES)
    seen = bad = 0
    results, table = kind.stream(paths), Results(out, kind.columns, kind.finish)
    with closing(results), table as written, _progress(total) as (advance, say):
        try:
            for path, result in results:
                seen += 1
                if isinstance(result, BadImage):
                    bad += 1
                    print(f"bad: {shown(path)}: {result}", file=sys.stderr)
                    written.bad(path, result)
                else:
                    say(kind.line(path, result))
                    kind.draw(seen, path, result)
                    written.add(path, *kind.rows(seen, path, result))
                advance()
                if stop and stop.asked.is_set():
                    raise Stopped(f"stopped after {seen:,} images; they are in {out / 'predictions.csv'}")
        except BrokenPipeError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it leaves
            raise Stopped(f"nobody reads on; {seen:,} images are in {out / 'predictions.csv'}") from error
    if not seen:
        raise UserError("no paths came on stdin", "-", "give one path a line, as: find photos -name '*.jpg' | vit predict … -")
    made = [out / "predictions.csv", out / "predictions.jsonl", *kind.made]
    print(f"{seen:,} images: {', '.join(map(str, made))}", file=sys.stderr)
    if bad:
        what = f"{bad:,} of {seen:,} files couldn't be read; the others are predicted"
        raise UserError(what, str(out / "predictions.csv"), "see its column error; mend those files or leave them out")


def _kind(predictor: Any) -> Any:
    """What tells of a model's results; those of masks and boxes import matplotlib."""
    from vit.deploy.detect import BoxPredictor
    from vit.deploy.segment import MaskPredictor

    if isinstance(predictor, BoxPredictor):
        from vit.deploy.boxcommand import Boxes

        return Boxes
    if isinstance(predictor, MaskPredictor):
        from vit.deploy.maskcommand import Masks

        return Masks
    return Labels


def split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line's sources and its flags, which may come in any order; behind `--` all are sources."""
    valued = {f"--{f.name}" for f in fields(Asked) if f.type is not bool}
    sources, flags, rest = [], [], iter(args)
    for arg in rest:
        if arg == "--":
            sources += rest
        elif arg == "-" or not arg.startswith("-"):
            sources.append(arg)
        else:
            flags.append(arg)
            if arg in valued:
                flags += [value for value in [next(rest, None)] if value is not None]
    return sources, flags


def _keep_out_of_the_images(sources: Sequence[str], out: Path) -> None:
    """Raise `UserError` if the results would come among the user's images without having been asked for there."""
    for source in sources:
        folder = Path(source).expanduser()
        if source != "-" and folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            what = "the results would be written among the images"
            raise UserError(
                what, str(folder.resolve()), "give --out FOLDER, as --out ../predicted, or run it in another folder"
            )


def shown(text: str) -> str:
    """A path or a class on one line: control characters, which a terminal would obey, as escapes."""
    return "".join(repr(c)[1:-1] if c < " " or "\x7f" <= c < "\xa0" else c for c in text)


class Labels:
    """What is told of a classification: a line, a row and the pictures that were asked for.

    Raises `UserError` for a block that the model hasn't got.
    """

    made, finish = (), None

    def __init__(self, asked: Asked, predictor: Any, folder: Path):
        self.asked, self.predictor, self.folder = asked, predictor, folder
        more = [x for i in range(2, TOP + 1) for x in (f"label_{i}", f"probability_{i}")]
        self.columns = ["label", "probability", *more]
        depth = predictor.trained.config.model.depth
        if not -depth <= asked.block < depth:
            what = f"there is no block {asked.block}, the model has {depth}"
            raise UserError(what, "the command line", f"give --block 0 to {depth - 1}, or -1 for the last")

    def stream(self, paths: Iterator[str]) -> Generator[tuple[str, Any]]:
        """Paths with their results."""
        return self.predictor.stream(paths, self.asked.block if self.asked.attention else None)

    def line(self, path: str, result: Any) -> str:
        """A result on one line: path, class, probability, and the likeliest ones, with tabs between."""
        top = ", ".join(f"{shown(name)} {share:.1%}" for name, share in result.top(TOP))
        return f"{shown(path)}\t{shown(result.label)}\t{result.probability:.4f}\t{top}"

    def rows(self, number: int, path: str, result: Any) -> tuple[list[list[Any]], dict[str, Any]]:
        """The values of the columns of each row, here one, and an object."""
        top = result.top(max(TOP, len(result.class_names) if len(result.class_names) <= ALL else 0))
        values = [x for name, share in top[:TOP] for x in (name, f"{share:.6f}")]
        return [values], {"label": result.label, "probability": top[0][1], "probabilities": dict(top)}

    def draw(self, number: int, path: str, result: Any) -> None:
        """The pictures that were asked for: `000001-NAME.png`, and `000001-NAME-attention.png`."""
        if not (self.asked.save_images or self.asked.attention):
            return
        from vit.report.attention import looks
        from vit.report.pictures import annotated

        image = again(path)
        if image is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        name = numbered(number, path)
        if self.asked.save_images:
            annotated(self.folder / f"{name}.png", image, result.top(TOP), path)
        if self.asked.attention:
            (best,), block = result.top(1), range(self.predictor.trained.config.model.depth)[self.asked.block]
            picture = self.folder / f"{name}-attention.png"
            looks(picture, self.predictor.view(image), best, result.attention, result.heads, block)


def numbered(number: int, path: str) -> str:
    """`000001-NAME`: what the files of an image are called."""
    return f"{number:06d}-{os.fsencode(Path(path).stem)[:120].decode(errors='ignore')}"


def again(path: str) -> UInt8[np.ndarray, "H W 3"] | None:
    """The image once more: to hold what is to be drawn would take the memory of a whole batch of photographs."""
    try:
        return pixels(path)
    except BadImage as bad:
        print(f"no picture of {shown(path)}: {bad}", file=sys.stderr)
        return None


def no_attention(asked: Asked, task: str, pictures: str) -> None:
    """Raise `UserError` for the flags that only a classification has."""
    if asked.attention or asked.block != -1:
        what = f"a {task} run has no --attention or --block"
        raise UserError(what, str(asked.workdir), f"leave them out; --save-images shows the {pictures}")


def not_another(path: Path, ours: Sequence[str]) -> None:
    """Raise `UserError` if there is a file that begins with none of ours."""
    begin = _start_of(path, max(map(len, ours))) if path.exists() else b""
    if begin and not begin.startswith(tuple(text.encode() for text in ours)):
        what = f"there is another {path.name}, which would be lost"
        raise UserError(what, str(path), "give another folder, as --out predicted")


class Results:
    """predictions.csv, a row or more an image, and predictions.jsonl, an object an image, written as they come.

    Raises `UserError` rather than replace a file of these names that isn't of `vit predict`.

    Args:
      folder: where they come.
      columns: of the CSV file between path and error.
      finish: what is to be done with predictions.jsonl when it is there, be it before all images are.
    """

    def __init__(self, folder: Path, columns: list[str], finish: Callable[[Path], None] | None = None):
        self.folder, self.columns, self.finish, self.files = folder, columns, finish, ExitStack()

    def __enter__(self) -> "Results":
        self.folder.mkdir(parents=True, exist_ok=True)
        begins = {"predictions.csv": ("path,label,probability,", "path,height,width,"), "predictions.jsonl": ('{"path": ',)}
        for name, ours in begins.items():
            not_another(self.folder / name, ours)
        # What isn't UTF-8 in a path goes as it came.
        how: Any = {"encoding": "utf-8", "errors": "surrogateescape", "newline": "", "buffering": 1}
        self.csv, self.jsonl = (self.files.enter_context((self.folder / name).open("w", **how)) for name in begins)
        self.rows = csv.writer(self.csv, lineterminator="\n")
        self.rows.writerow(["path", *self.columns, "error"])
        return self

    def add(self, path: str, rows: list[list[Any]], told: dict[str, Any]) -> None:
        """The rows of a prediction, each the first columns' values, and its object."""
        self._write([[path, *row, *[""] * (len(self.columns) - len(row)), ""] for row in rows], {"path": path, **told})

    def bad(self, path: str, bad: BadImage) -> None:
        """A row for a bad file."""
        self._write([[path, *[""] * len(self.columns), str(bad)]], {"path": path, "error": str(bad)})

    def _write(self, rows: list[list[Any]], told: dict[str, Any]) -> None:
        self.rows.writerows(rows)
        text = json.dumps(told, ensure_ascii=False)
        self.jsonl.write((text if _is_unicode(text) else json.dumps(told)) + "\n")

    def __exit__(self, *_: object) -> None:
        self.files.close()
        if self.finish:
            self.finish(self.folder / "predictions.jsonl")


def _start_of(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _progress(total: int | None) -> Iterator[tuple[Callable[[], None], Callable[[str], None]]]:
    """(move the bar on stderr, print a line on stdout)."""
    console, out = Console(stderr=True, highlight=False), sys.stdout
    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("images, ETA"), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal, redirect_stdout=False)
    reconfigure = getattr(out, "reconfigure", None)  # a captured stdout has none
    if reconfigure:
        reconfigure(encoding="utf-8", errors="surrogateescape", line_buffering=True)

    def say(text: str) -> None:
        # On one terminal with the bar, the line must come above it.
        if bar.disable or not out.isatty():
            print(text, file=out)
        else:
            console.print(text, markup=False, soft_wrap=True)

    with bar:
        task = bar.add_task("predicting", total=total)
        yield lambda: bar.update(task, advance=1), say
