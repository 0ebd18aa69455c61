"""Sets of TFDS that have an image and a mask, as they were prepared, read without TensorFlow."""

from pathlib import Path
from typing import Any

from vit.data.folder import SPLIT_NAMES, shown
from vit.data.maskfiles import mask_size
from vit.data.maskforms import Layout, Pair
from vit.data.prepared import set_below
from vit.errors import UserError

NAMES = ("segmentation_mask", "segmentation_label", "segmentation", "mask", "annotation", "label_map", "labels", "label")


def find(root: Path) -> Layout | None:
    """The pairs of a set that was prepared in this folder or below it, as NAME/VERSION; None where there is none."""
    below = root if (root / "features.json").is_file() else set_below(root)
    return _read(below) if below else None


def _read(folder: Path) -> Layout:
    from absl import logging
    from tensorflow_datasets.core import read_only_builder
    from tensorflow_datasets.core.decode import SkipDecoding
    from tensorflow_datasets.core.features import Image

    logging.set_verbosity(logging.ERROR)  # else it recommends OpenCV
    builder: Any = read_only_builder.builder_from_directory(str(folder))
    features: Any = builder.info.features
    images: dict[str, Any] = {name: kind for name, kind in features.items() if isinstance(kind, Image)}
    masks = [name for name, kind in images.items() if name != "image" and kind.shape[-1] == 1]
    masks = [name for name in NAMES if name in masks] or masks
    if not masks or "image" not in images:
        what = f"the set has no image and mask, only {', '.join(sorted(features)):.120}"
        raise UserError(what, shown(str(folder)), "choose another set")
    mask = masks[0]
    parts = {name: name for name in builder.info.splits if name.lower() in SPLIT_NAMES}
    try:
        skipped = {"image": SkipDecoding(), mask: SkipDecoding()}
        sources: dict[str, Any] = {part: builder.as_data_source(split=part, decoders=skipped) for part in parts}
    except NotImplementedError as error:
        fix = "prepare it in another folder: uv run vit prepare NAME --data.dir FOLDER"
        raise UserError("the set was prepared for reading in order only", shown(str(folder)), fix) from error
    splits = {part: SPLIT_NAMES[part.lower()] for part in parts}
    if len(set(splits.values())) < len(splits):
        raise UserError(f"two splits are the same: {', '.join(parts)}", shown(str(folder)), "leave one of them")
    if set(splits.values()) == {"train"}:
        splits = dict.fromkeys(parts, "")
    pairs = [
        Pair(f"{part}/{i:08d}", f"{part}/{i:08d}, {mask}", splits[part]) for part in parts for i in range(len(sources[part]))
    ]

    def read(pair: Pair, feature: str) -> bytes:
        part, i = pair.image.rsplit("/", 1)
        return sources[part][int(i)][feature]

    names = getattr(features[mask], "names", None)
    return Layout(
        f"TFDS set {builder.info.name} {builder.info.version} with {mask}", folder, pairs, [],
        names=dict(enumerate(names)) if names else None, image=lambda pair: read(pair, "image"),
        mask=lambda pair: read(pair, mask), size=lambda pair: mask_size(read(pair, mask)),
    )  # fmt: skip
