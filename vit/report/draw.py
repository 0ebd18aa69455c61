"""What all pictures share: colours, texts that are safe to draw, images of any kind, and the one way to a file."""

import io
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names

from vit.training.storage import write_atomically

BLUE, ORANGE, INK, PALE = "#2563a8", "#d9730d", "#333333", "#dbe6f2"
DPI = 130

# matplotlib's own font lacks most scripts; a font that this machine has for them helps out.
_OTHERS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "Hiragino Sans", "Arial Unicode MS", "Noto Sans")
matplotlib.rcParams["font.family"] = ["DejaVu Sans", *(name for name in _OTHERS if name in get_font_names())]


def text(words: object, width: int = 10_000) -> str:
    """Any text as one line that matplotlib draws as it stands (a $ would begin a formula), cut to `width` characters."""
    line = "".join(c if c.isprintable() else " " for c in str(words))
    line = " ".join(line.split())
    return (line if len(line) <= width else line[: width - 1].rstrip() + "…").replace("$", r"\$")


def heading(figure: Figure, words: str, inches: float = 0) -> None:
    """A title over the whole figure, in as many lines as its width (or the one given) needs."""
    width = max(20, int((inches or figure.get_figwidth()) * 11.5))
    figure.suptitle("\n".join(text(line) for line in textwrap.wrap(words, width)), fontsize=10.5, color=INK)


class Place(NamedTuple):
    """A square for an image: where in an axes as large as its figure, in inches."""

    ax: Axes
    left: float
    bottom: float
    side: float


def show(where: Place, image: np.ndarray) -> None:
    """An image (H, W, C) of uint8 with 1, 3 or any other number of channels, in the middle of its place, as large as fits."""
    colours = image if image.shape[-1] == 3 else image.mean(axis=-1)
    _draw(where, colours, image.shape, "antialiased", cmap="gray", vmin=0, vmax=255)


def heat(where: Place, values: Float[np.ndarray, "h w"], image: np.ndarray, alpha: float) -> None:
    """A map from its least (dark) to its most (bright), stretched over an image's place; smoothly if the image is large."""
    spread = np.ptp(values)
    scaled = (values - values.min()) / (spread if spread > 0 else 1)
    _draw(where, scaled, image.shape, "bilinear", cmap="inferno", vmin=0, vmax=1, alpha=alpha)


def _draw(where: Place, values: np.ndarray, shape: Sequence[int], smoothly: str, **look: Any) -> None:
    """Values stretched over the part of a place that an image of a shape takes."""
    height, width = shape[:2]
    interpolation = smoothly if max(height, width) >= 64 else "nearest"  # small ones keep their pixels
    w, h = where.side * min(1, width / height), where.side * min(1, height / width)
    x, y = where.left + (where.side - w) / 2, where.bottom + (where.side - h) / 2
    where.ax.imshow(values, extent=(x, x + w, y, y + h), aspect="auto", interpolation=interpolation, **look)


def grid(
    count: int, columns: int, width: float, lines: int, extra: float = 0.0, below: float = 0.0
) -> tuple[Figure, Sequence[Place]]:
    """A figure with `count` square places for images in rows of at most `columns`.

    Args:
      width: of a place, in inches.
      lines: of text above each.
      extra: inches for a heading.
      below: inches left free under the images.
    """
    columns = min(columns, count)
    rows, height = -(-count // columns), width + 0.02 + 0.14 * lines
    figure = Figure(whole := (columns * width, rows * height + extra + below))
    # One for all of them: matplotlib would spend seconds on one each.
    ax = figure.add_axes((0, 0, 1, 1), xlim=(0, whole[0]), ylim=(0, whole[1]), autoscale_on=False)
    ax.axis("off")
    corners = [((i % columns + 0.03) * width, below + (rows - 1 - i // columns) * height + 0.03 * width) for i in range(count)]
    return figure, [Place(ax, *corner, 0.94 * width) for corner in corners]


def caption(where: Place, words: str, colour: str = INK, size: float = 8) -> None:
    """Lines above an image's place."""
    x, y = where.left + where.side / 2, where.bottom + where.side + 2 / 72
    where.ax.text(x, y, words, fontsize=size, color=colour, ha="center", va="baseline")


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        # A letter that no font here has is drawn as a box; the page has the whole name.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas = FigureCanvasAgg(figure)
        figure.set_dpi(DPI)
        canvas.print_png(out)
    return out.getvalue()


def save(figure: Figure, path: Any) -> None:
    """Write the figure as a PNG file, whole or not at all."""
    write_atomically(path, png(figure))


def row(source: Any, ids: Sequence[int] | Int[np.ndarray, "N"], i: int) -> dict[str, Any]:
    """What a source has of row i of an evaluation, in which bad images that were skipped have no row."""
    known = getattr(source, "ids", None)
    return source[int(i) if known is None else int(np.flatnonzero(np.asarray(known) == ids[i])[0])]
