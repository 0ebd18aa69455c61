"""What `vit predict` tells of a detection: boxes in lines, rows and COCO's JSON, and drawn on request."""

import itertools
import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from vit.deploy.command import Asked, again, no_attention, not_another, numbered, shown
from vit.deploy.detect import BoxPrediction, BoxPredictor
from vit.deploy.maskcommand import save

COCO = "predictions.json"
BEGIN = '{"info": {"description": "vit predict"'  # of a file that may be replaced


class Boxes:
    """What is told of a detection: a line, a row for each box, and the picture that was asked for; at the end COCO's JSON.

    Raises `UserError` for flags of a classification, or rather than replace a predictions.json that isn't of `vit predict`.
    """

    def __init__(self, asked: Asked, predictor: BoxPredictor, folder: Path):
        self.asked, self.predictor, self.folder, self.coco = asked, predictor, folder, folder.parent / COCO
        self.made = (self.coco, folder / "boxes") if asked.save_images else (self.coco,)
        self.columns = ["height", "width", "label", "score", "x0", "y0", "x1", "y1"]
        no_attention(asked, "detection", "boxes")
        predictor.threshold = asked.threshold or predictor.threshold
        not_another(self.coco, (BEGIN,))

    def stream(self, paths: Iterator[str]) -> Generator[tuple[str, Any]]:
        """Paths with their results."""
        return self.predictor.stream(paths)

    def line(self, path: str, result: BoxPrediction) -> str:
        """A result on one line: path, and how many there are of each class, with tabs between."""
        told = [f"{count} {shown(name)}" for name, count in result.counts().items()]
        return "\t".join([shown(path), *(told or ["nothing"])])

    def rows(self, number: int, path: str, result: BoxPrediction) -> tuple[list[list[Any]], dict[str, Any]]:
        """The values of the columns for each box, of the sizes alone where there is none, and an object with all boxes."""
        objects = [
            {"label": result.class_names[kind], "score": round(score, 6), "box": [round(side, 2) for side in (x0, y0, x1, y1)]}
            for (y0, x0, y1, x1), kind, score in zip(
                result.boxes.tolist(), result.kinds.tolist(), result.scores.tolist(), strict=True
            )
        ]
        height, width = result.size
        values = [[height, width, x["label"], f"{x['score']:.6f}", *(f"{side:.2f}" for side in x["box"])] for x in objects]
        return values or [[height, width]], {"height": height, "width": width, "boxes": objects}

    def draw(self, number: int, path: str, result: BoxPrediction) -> None:
        """Where it was asked for, boxes/000001-NAME.png."""
        if self.asked.save_images and (image := again(path)) is not None:
            (self.folder / "boxes").mkdir(parents=True, exist_ok=True)
            save(self.folder / "boxes" / f"{numbered(number, path)}.png", Image.fromarray(result.draw(image)), 1)

    def finish(self, objects: Path) -> None:
        """predictions.json from the lines of predictions.jsonl; images are numbered by them. Little is held in memory."""
        categories = [{"id": k, "name": name} for k, name in enumerate(self.predictor.class_names, 1)]
        temporary = self.coco.with_name(f".{self.coco.name}.{os.getpid()}")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(f'{BEGIN}}},\n"categories": {json.dumps(categories)}')
            for name, rows in (("images", self._images(objects)), ("annotations", self._annotations(objects))):
                file.write(f',\n"{name}": [')
                file.writelines(f"{',' if i else ''}\n{json.dumps(row)}" for i, row in enumerate(rows))
                file.write("]")
            file.write("}\n")
        temporary.replace(self.coco)

    def _images(self, objects: Path) -> Iterator[dict[str, Any]]:
        for i, told in _lines(objects):
            yield {"id": i, "file_name": told["path"], "height": told["height"], "width": told["width"]}

    def _annotations(self, objects: Path) -> Iterator[dict[str, Any]]:
        numbers, numbering = {name: k for k, name in enumerate(self.predictor.class_names, 1)}, itertools.count(1)
        for i, told in _lines(objects):
            for x in told["boxes"]:
                x0, y0, x1, y1 = x["box"]
                width, height = round(x1 - x0, 2), round(y1 - y0, 2)
                it = {"id": next(numbering), "image_id": i, "category_id": numbers[x["label"]], "score": x["score"]}
                yield it | {"bbox": [x0, y0, width, height], "area": round(width * height, 2), "iscrowd": 0}


def _lines(objects: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of predictions.jsonl with their numbers, those of bad files left out."""
    with objects.open(encoding="utf-8", errors="surrogateescape") as file:
        yield from ((i, told) for i, told in enumerate(map(json.loads, file), 1) if "error" not in told)
