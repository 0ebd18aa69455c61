"""What all pictures share: colours, texts that are safe to draw, images of any kind, and the one way to a file."""

import io
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
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


def show(ax: Axes, image: np.ndarray, smooth: bool | None = None) -> None:
    """An image (H, W, C) of uint8 with 1, 3 or any other number of channels, without axes; small ones keep their pixels."""
    colours = image if image.shape[-1] == 3 else image.mean(axis=-1)
    smooth = max(image.shape[:2]) >= 64 if smooth is None else smooth
    ax.imshow(colours, cmap="gray", vmin=0, vmax=255, interpolation="antialiased" if smooth else "nearest")
    ax.axis("off")


def grid(count: int, columns: int, width: float, lines: int, extra: float = 0.0) -> tuple[Figure, Sequence[Axes]]:
    """A figure with `count` square places for images in rows of at most `columns`.

    Args:
      width: of a place, in inches.
      lines: of text above each.
      extra: inches for a heading.
    """
    columns = min(columns, count)
    rows, height = -(-count // columns), width + 0.02 + 0.14 * lines
    whole = columns * width, rows * height + extra
    figure, axes = Figure(whole), []
    # Placed by hand: matplotlib's layout measures every text several times, for seconds.
    for i in range(count):
        row, column = divmod(i, columns)
        left, bottom, side = (column + 0.03) * width, (rows - 1 - row) * height + 0.03 * width, 0.94 * width
        axes.append(figure.add_axes((left / whole[0], bottom / whole[1], side / whole[0], side / whole[1])))
        axes[-1].axis("off")
    return figure, axes


def caption(ax: Axes, words: str, colour: str = INK, size: float = 8) -> None:
    """Lines above an image."""
    ax.set_title(words, fontsize=size, color=colour, pad=2, y=1)


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
