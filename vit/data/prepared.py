"""Sets that TFDS or Hugging Face prepared, in a folder or fetched by name; `decode` gets their images as they were stored."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vit.data.folder import SPLIT_NAMES, Entry, Listing, Problem, is_folder, made, shown
from vit.errors import UserError


def find(root: Path) -> Listing | None:
    """The listing of a set that was prepared in this folder; None where there is none."""
    if (root / "dataset_dict.json").is_file() or (root / "state.json").is_file():
        return hugging_face(str(root))
    if (root / "features.json").is_file() and (root / "dataset_info.json").is_file():
        return _tfds(root)
    below = set_below(root)
    return _tfds(below) if below else None


def set_below(root: Path) -> Path | None:
    """The folder of the one set that TFDS prepared below a folder, as NAME/VERSION. Raises `UserError` if there are several."""
    # A folder of a class may hold a million files, which aren't looked at.
    tops = _folders(root)
    inner = [folder for top in tops for folder in _folders(top, 9)]
    below = sorted(path for path in tops + inner if (path / "features.json").is_file())
    if len(below) > 1:
        names = ", ".join(shown(str(path.relative_to(root))) for path in below)
        raise UserError(
            f"several prepared sets are in it: {names:.120}", shown(str(root)), "give the folder of one as --data.dir"
        )
    return below[0] if below else None


def _folders(folder: Path, most: int | None = None) -> list[Path]:
    with os.scandir(folder) as files:
        return [Path(file.path) for file in itertools.islice(files, most) if is_folder(file)]


def _tfds(folder: Path) -> Listing:
    from absl import logging
    from tensorflow_datasets.core import read_only_builder
    from tensorflow_datasets.core.decode import SkipDecoding

    logging.set_verbosity(logging.ERROR)  # else it recommends OpenCV
    builder: Any = read_only_builder.builder_from_directory(str(folder))
    features = builder.info.features
    if not {"image", "label"} <= features.keys():
        what = f"the set has no image and label, only {', '.join(sorted(features))}"
        raise UserError(what, shown(str(folder)), "choose another set")
    try:
        parts = {
            name: builder.as_data_source(split=name, decoders={"image": SkipDecoding()})
            for name in builder.info.splits
            if name.lower() in SPLIT_NAMES
        }
    except NotImplementedError as error:
        fix = "prepare it in another folder: uv run vit prepare NAME --data.dir FOLDER"
        raise UserError("the set was prepared for reading in order only", shown(str(folder)), fix) from error
    names = features["label"].names or [str(i) for i in range(features["label"].num_classes)]
    form = f"TFDS set {builder.info.name} {builder.info.version}"
    return _listed(form, folder, parts, names, lambda part, i: parts[part][i]["image"], lambda part, i: parts[part][i]["label"])


def hugging_face(name: str) -> Listing:
    """The listing of a Hugging Face data set: a folder that `save_to_disk` wrote, or hf:NAME, which is downloaded."""
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        what = "reading a Hugging Face data set needs the package datasets, which isn't installed"
        raise UserError(what, "this Python environment", "uv run --extra hf … (or pip install 'vit[hf]')") from error
    datasets.disable_progress_bars()
    try:
        loaded: Any = datasets.load_dataset(name[3:]) if name.startswith("hf:") else datasets.load_from_disk(name)
    except (OSError, ValueError, DatasetsError) as error:
        what = f"the data set can't be loaded: {str(error) or type(error).__name__:.150}"
        raise UserError(
            what, shown(name), "check its name and the network, or save it with save_to_disk and give the folder"
        ) from error
    parts = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    parts = {part: split for part, split in parts.items() if part.lower() in SPLIT_NAMES}
    features = next(iter(parts.values())).features if parts else {}
    image = next((key for key, kind in features.items() if isinstance(kind, datasets.Image)), "")
    labels = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    label = next(iter(labels), "label" if "label" in features else "")
    if not image or not label:
        what = f"the data set has no image and label, only {', '.join(features) or 'splits of other names'}"
        raise UserError(what, shown(name), "choose another set, or write a table of path,label")
    columns = {part: split.with_format(None)[label] for part, split in parts.items()}
    columns = {part: list(column) for part, column in columns.items()}
    names = features[label].names if labels else sorted({str(x) for column in columns.values() for x in column})
    raw = {part: split.cast_column(image, datasets.Image(decode=False)) for part, split in parts.items()}

    def read(part: str, i: int) -> Path | bytes:
        found = raw[part][i][image]
        return found["bytes"] if found["bytes"] is not None else Path(found["path"])

    def number(part: str, i: int) -> int:
        return columns[part][i] if labels else names.index(str(columns[part][i]))

    return _listed(f"Hugging Face data set {name.removeprefix('hf:')}", Path(name), parts, names, read, number)


def _listed(
    form: str,
    root: Path,
    parts: dict[str, Any],
    names: list[str],
    read: Callable[[str, int], Path | bytes],
    label: Callable[[str, int], int],
) -> Listing:
    """`read` and `label` take the name of a split and a place in it."""
    problems: list[Problem] = []
    entries = []
    if len({SPLIT_NAMES[part.lower()] for part in parts}) < len(parts):
        problems.append(Problem(f"two splits are the same: {', '.join(parts)}", shown(str(root)), "leave one of them"))
    splits = {part: SPLIT_NAMES[part.lower()] for part in parts}
    if set(splits.values()) == {"train"}:
        splits = dict.fromkeys(parts, "")
    for part, examples in parts.items():
        for i in range(len(examples)):
            number = int(label(part, i))
            if 0 <= number < len(names):
                entries.append(Entry(f"{part}/{i:08d}", names[number], splits[part]))
            else:
                what = f"label {number} is outside 0 to {len(names) - 1}"
                problems.append(Problem(what, f"{shown(str(root))}, {part}[{i}]", "take images without a class out"))
    if not entries:
        raise UserError("the set has no images", shown(str(root)), "choose another set")

    def by_name(name: str) -> Path | bytes:
        part, i = name.split("/")
        return read(part, int(i))

    return made(form, root, entries, list(names), by_name, problems)
