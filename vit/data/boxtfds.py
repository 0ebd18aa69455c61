"""Sets of TFDS that have an image and objects with boxes (coco, voc, …), as they were prepared, read without TensorFlow."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from vit.data.boxforms import Row, Sheet
from vit.data.folder import SPLIT_NAMES, shown
from vit.data.prepared import set_below
from vit.errors import UserError

CROWDS = "is_crowd", "is_difficult"


def below(root: Path) -> Path | None:
    """The folder of the one set that was prepared in this folder or below it, as NAME/VERSION; None where there is none."""
    return root if (root / "features.json").is_file() else set_below(root)


def find(root: Path) -> Sheet | None:
    """The images of a set that was prepared in this folder or below it; None where there is none."""
    folder = below(root)
    return _read(folder) if folder else None


def _read(folder: Path) -> Sheet:
    from absl import logging
    from tensorflow_datasets.core import read_only_builder
    from tensorflow_datasets.core.decode import SkipDecoding

    logging.set_verbosity(logging.ERROR)  # else it recommends OpenCV
    builder: Any = read_only_builder.builder_from_directory(str(folder))
    features: Any = builder.info.features
    objects: Any = getattr(features["objects"], "feature", {}) if "objects" in features else {}
    if "image" not in features or not hasattr(objects, "keys") or not {"bbox", "label"} <= set(objects.keys()):
        what = f"the set has no image and objects with bbox and label, only {', '.join(sorted(features)):.120}"
        raise UserError(what, shown(str(folder)), "choose another set")
    parts = {part: SPLIT_NAMES[part.lower()] for part in builder.info.splits if part.lower() in SPLIT_NAMES}
    try:
        skipped = {"image": SkipDecoding()}
        sources: dict[str, Any] = {part: builder.as_data_source(split=part, decoders=skipped) for part in parts}
    except NotImplementedError as error:
        fix = "prepare it in another folder: uv run vit prepare NAME --data.dir FOLDER"
        raise UserError("the set was prepared for reading in order only", shown(str(folder)), fix) from error
    if len(set(parts.values())) < len(parts):
        raise UserError(f"two splits are the same: {', '.join(parts)}", shown(str(folder)), "leave one of them")
    if set(parts.values()) == {"train"}:
        parts = dict.fromkeys(parts, "")
    names = objects["label"].names or [str(i) for i in range(objects["label"].num_classes)]

    def read(name: str) -> bytes:
        part, i = name.rsplit("/", 1)
        return sources[part][int(i)]["image"]

    form = f"TFDS set {builder.info.name} {builder.info.version} with objects"
    made = Sheet(form, folder, dict(enumerate(names)), read=read)
    console = Console(stderr=True)
    for part, split in parts.items():
        some = track(range(len(sources[part])), f"reading boxes of {part}", console=console, transient=True)
        for i in some:
            name = f"{part}/{i:08d}"
            where = f"{shown(str(folder))}, {part}[{i}]"
            made.add(name, split, _rows(sources[part][i]["objects"], where), fix="prepare the set again, from a mended source")
    return made


def _rows(objects: dict[str, Any], where: str) -> list[Row]:
    """The boxes of an example; TFDS's are (ymin, xmin, ymax, xmax) in [0, 1]."""
    crowds = next((objects[name] for name in CROWDS if name in objects), [False] * len(objects["label"]))
    areas = objects.get("area", [float("nan")] * len(objects["label"]))
    rows = []
    for k, (box, label, crowd, area) in enumerate(zip(objects["bbox"], objects["label"], crowds, areas, strict=True)):
        y0, x0, y1, x1 = map(float, box)
        area = float(area) if float(area) > 0 else float("nan")
        told = f"bbox {y0:g} {x0:g} {y1:g} {x1:g}"
        rows.append(Row((y0, x0, y1, x1), int(label), told, f"{where}, object {k}", bool(crowd), area))
    return rows
