"""The files of a run: in a folder on a disk, or in an object store (gs://, s3://, az://).

A disk renames a whole folder at once. An object store doesn't: there a folder arrives file by file, so one file of it, the
manifest, is written last and removed first, and a folder without it doesn't count.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vit.errors import UserError

MANIFEST = "manifest.json"
STORES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}


def open_folder(text: str) -> Any:
    """The path of a run's folder: a `pathlib.Path`, or etils' twin of it for an address like gs://BUCKET/FOLDER.

    Raises `UserError` if the store isn't known or can't be reached from here.
    """
    if "://" not in text:
        return Path(text)
    from etils import epath

    try:
        path = epath.Path(text)
        path.exists()
    except (ImportError, ValueError, NotImplementedError, KeyError) as error:
        store = text.partition("://")[0]
        why, fix = f"{store}:// is no store known here", f"give a folder, or an address in {', '.join(STORES)}"
        if store in STORES:
            why, fix = str(error), f"run it with the store's package: uv run --with {STORES[store]} …"
        raise UserError(f"this address can't be opened: {why}", text, fix) from error
    return path


def is_remote(path: Any) -> bool:
    """Whether the path is in an object store."""
    return not isinstance(path, Path)


def write_atomically(path: Any, content: str | bytes) -> None:
    """Replace a file so that a kill leaves the old or the new one, never half of one."""
    content = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        path.write_bytes(content)  # an object appears when it is whole
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


def files(folder: Any) -> list[str]:
    """Every file below a folder, by its relative path, sorted; the manifest last."""

    def below(path: Any, prefix: str) -> Iterator[str]:
        for child in path.iterdir():
            if child.is_dir():
                yield from below(child, f"{prefix}{child.name}/")
            else:
                yield prefix + child.name

    return sorted(below(folder, ""), key=lambda name: (name == MANIFEST, name))


def digest(path: Any) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy(source: Any, target: Any) -> None:
    """Copy a folder, the manifest last."""
    for name in files(source):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with (source / name).open("rb") as old, (target / name).open("wb") as new:
            shutil.copyfileobj(old, new, 1 << 20)


def move(source: Any, target: Any) -> None:
    """Rename a folder; where that can't be done at once, copy it and remove the old one."""
    if is_remote(source) or is_remote(target):
        copy(source, target)
        remove(source)
    else:
        source.rename(target)


def remove(folder: Any) -> None:
    """Remove a folder, on an object store the manifest first."""
    if is_remote(folder):
        (folder / MANIFEST).unlink(missing_ok=True)
        folder.rmtree()
    else:
        shutil.rmtree(folder)


def sync(folder: Path) -> None:
    """Wait until everything below a folder is on the disk."""
    for path in [*folder.rglob("*"), folder]:
        sync_one(path)


def sync_one(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
