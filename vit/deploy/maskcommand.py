"""What `vit predict` tells of a segmentation: areas in lines and rows, id masks, a legend; overlays on request."""

import io
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vit.deploy.command import Asked, again, no_attention, numbered, shown
from vit.deploy.segment import MaskPrediction, MaskPredictor
from vit.errors import UserError
from vit.report import masks
from vit.training.storage import write_atomically

TOP = 3  # classes in a line
MARK = "vit predict"  # in a PNG file that may be replaced


class Masks:
    """What is told of a segmentation: a line, a row, the mask, and the picture that was asked for.

    Raises `UserError` for flags of a classification, or rather than add masks to those of other classes.
    """

    finish = None

    def __init__(self, asked: Asked, predictor: MaskPredictor, folder: Path):
        self.asked, self.predictor, self.folder, self.made = asked, predictor, folder, (folder / "masks",)
        self.columns = ["height", "width", "mask", *(f"area_{name}" for name in predictor.class_names)]
        self.colours, self.begun = masks.palette(predictor.class_names), False
        self.classes = "".join(f"{shown(name)}\n" for name in predictor.class_names)
        no_attention(asked, "segmentation", "masks")
        path = folder / "classes.txt"
        if path.exists() and path.read_bytes() != self.classes.encode():
            raise UserError("there are masks of other classes", str(path), "give another folder, as --out predicted")

    def stream(self, paths: Iterator[str]) -> Generator[tuple[str, Any]]:
        """Paths with their results."""
        return self.predictor.stream(paths)

    def line(self, path: str, result: MaskPrediction) -> str:
        """A result on one line: path, and the classes of the largest areas with their shares, with tabs between."""
        return "\t".join([shown(path), *(f"{shown(name)} {share:.1%}" for name, share in result.top(TOP))])

    def rows(self, number: int, path: str, result: MaskPrediction) -> tuple[list[list[Any]], dict[str, Any]]:
        """The values of the columns of each row, here one, and an object with the areas of those classes that are there."""
        (height, width), name = result.mask.shape, f"{self.folder.name}/masks/{numbered(number, path)}.png"
        areas = dict(result.top(len(result.class_names)))
        values = [height, width, name, *(f"{share:.6f}" for share in result.areas)]
        return [values], {"height": height, "width": width, "mask": name, "areas": areas}

    def draw(self, number: int, path: str, result: MaskPrediction) -> None:
        """masks/000001-NAME.png, its values the numbers of the classes; where it was asked for, the same name in overlays."""
        if not self.begun:
            for name in ("masks", "overlays") if self.asked.save_images else ("masks",):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / "classes.txt", self.classes)
            masks.legend(self.folder / "legend.png", self.predictor.class_names)
            self.begun = True
        name, picture = f"{numbered(number, path)}.png", Image.fromarray(result.mask)
        picture.putpalette(self.colours.tobytes())
        save(self.folder / "masks" / name, picture, 6)
        if self.asked.save_images and (image := again(path)) is not None:
            save(self.folder / "overlays" / name, Image.fromarray(result.overlay(image)), 1)


def save(path: Path, picture: Image.Image, level: int) -> None:
    """Write a PNG file, whole or not at all. Raises `UserError` rather than replace one that isn't of `vit predict`."""
    if path.exists():
        with path.open("rb") as file:
            if MARK.encode() not in file.read(4096):
                what = f"there is another {path.name}, which would be lost"
                raise UserError(what, str(path), "give another folder, as --out predicted")
    content, about = io.BytesIO(), PngInfo()
    about.add_text("Software", MARK)
    picture.save(content, "png", compress_level=level, pnginfo=about)
    write_atomically(path, content.getvalue())
