"""What a user means by images: on the command line files, folders and patterns; in Python arrays, pictures and paths."""

import glob
import io
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vit.data.decode import BadImage, decode, exif_orientation, upright
from vit.data.folder import DEEPEST, ENDINGS
from vit.errors import UserError

FIX = "give files, folders, 'patterns*.jpg', or - for paths on stdin"


class Shown(NamedTuple):
    """An image as a model of masks or boxes is to see it, with the height and width that it takes there, and its own."""

    image: UInt8[np.ndarray, "h w C"]
    content: tuple[int, int]
    size: tuple[int, int]


def find(sources: Iterable[str], without: Path | None = None) -> Iterator[str]:
    """The paths that the sources name: of a file itself, of a folder all images below it, of a pattern what it matches.

    `-` stands for paths on stdin, one a line. A folder is walked in the order of its names as the paths are asked for; only
    the names of the folders on the way are held.

    Args:
      without: a folder that isn't entered: the one that pictures are written to.

    Raises:
      UserError: at once, if a source names nothing.
    """
    parts = [_found(source, without) for source in sources]
    if not parts:
        raise UserError("no images were named", "the command line", FIX)
    return (path for part in parts for path in part)


def _found(source: str, without: Path | None) -> Iterator[str]:
    if source == "-":
        return _from_stdin()
    path = os.path.expanduser(source)
    if os.path.isdir(path):
        return _first(_below(path, without), "there are no images in this folder, to go by the ends of their names", source)
    if os.path.exists(path):
        return iter([path])
    if not glob.has_magic(path):
        raise UserError("there is no such file or folder", source, FIX)
    return _first(_matching(path, without), "no image matches this pattern", source)


def _first(paths: Iterator[str], otherwise: str, source: str) -> Iterator[str]:
    """The paths again; looks whether there is one."""
    one = next(paths, None)
    if one is None:
        raise UserError(otherwise, source, FIX)
    return (path for part in ([one], paths) for path in part)


def _from_stdin() -> Iterator[str]:
    for line in sys.stdin.buffer:
        if path := line.rstrip(b"\r\n"):
            yield os.fsdecode(path)


def _matching(pattern: str, without: Path | None) -> Iterator[str]:
    for path in sorted(glob.iglob(pattern, recursive=True)):
        if os.path.isdir(path) and "**" not in pattern:
            yield from _below(path, without)
        elif _is_image(path) and os.path.isfile(path) and not _within(path, without):
            yield path


def _below(folder: str, without: Path | None, deep: int = 0) -> Iterator[str]:
    """Images below a folder, by name. Hidden ones are left out, and links to folders aren't followed (they may lead round)."""
    with os.scandir(folder) as entries:
        names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries if not entry.name.startswith("."))
    for name, is_folder in names:
        path = os.path.join(folder, name)
        if is_folder and deep < DEEPEST and not _within(path, without):
            yield from _below(path, without, deep + 1)
        elif not is_folder and _is_image(name):
            yield path


def _within(path: str, folder: Path | None) -> bool:
    return folder is not None and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in ENDINGS


def pixels(image: Any) -> UInt8[np.ndarray, "H W 3"]:
    """One image's pixels, of a path, a file's bytes, a PIL image, or a uint8 array (H, W) or (H, W, C) of 1, 3 or 4 channels.

    Raises `BadImage` for a file that isn't an image, `UserError` for what isn't one of these.
    """
    if isinstance(image, str | os.PathLike):
        return decode(Path(image))
    if isinstance(image, bytes):
        return decode(image)
    if isinstance(image, Image.Image):
        return _of_picture(image)
    array = np.asarray(image)
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not fits or not array.size:
        what = f"this is no image: {type(image).__name__} of {array.dtype} {array.shape}"
        fix = "give uint8 pixels from 0 to 255, as (H, W, 3), (H, W, 1) or (H, W); or a path, or a PIL image"
        raise UserError(what, "predict()", fix)
    if array.ndim == 3 and array.shape[2] == 4:
        return _of_picture(Image.fromarray(array))
    return np.broadcast_to(array.reshape(*array.shape[:2], -1), (*array.shape[:2], 3))


def _of_picture(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """As `decode` has it: alpha and 16 bits go through a lossless file. Raises `BadImage` for one that can't be loaded."""
    try:
        image.load()
    except (OSError, ValueError) as error:
        raise BadImage(f"it is cut off or damaged ({error!s:.80})") from error
    turned = exif_orientation(image.info.get("exif", b"").removeprefix(b"Exif\0\0"))
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64)
        if image.mode == "I" and deep.max() < 256:  # 32 bits that hold 8
            deep = deep * 257
        image = Image.fromarray(np.clip(deep, 0, 65535).astype(np.uint16))
    elif image.mode in ("PA", "La", "RGBa"):
        image = image.convert("RGBA" if image.mode != "La" else "LA")
    elif image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        image = image.convert("RGB")
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return upright(np.asarray(image.convert("RGB")), turned)
    content = io.BytesIO()
    image.save(content, "png", compress_level=1)
    return upright(decode(content.getvalue()), turned)


def check_size(image: UInt8[np.ndarray, "H W 3"], size: tuple[int, ...], what: str, where: str) -> None:
    """Raise `UserError` if an image isn't of the height and width of what was made of it."""
    if image.shape[:2] != size:
        sizes = " and ".join("{1} x {0} pixels".format(*x) for x in (image.shape, size))
        raise UserError(f"image and {what} have {sizes}", where, "give the image that was predicted")


def listed(images: Any) -> Iterable[Any]:
    """What a user gives to `predict`, image by image: one image is a series of one, a batch (B, H, W, C) of B."""
    if isinstance(images, str | os.PathLike | bytes | Image.Image):
        return [images]
    if hasattr(images, "ndim"):  # NumPy's, JAX's, and others that NumPy can read
        array = np.asarray(images)
        return list(array) if array.ndim == 4 else [array]
    try:
        return iter(images)
    except TypeError as error:
        fix = "give paths, arrays or PIL images: one, or a list of them"
        raise UserError(f"this is no image: {type(images).__name__}", "predict()", fix) from error
