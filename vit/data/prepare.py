"""`vit prepare`: CIFAR-10 and CIFAR-100 from their archives to TFDS array_record sets, without TensorFlow.

The archive is read as a stream and never unpacked to disk: every member must be one that the official archive has, with
its size, so that a link, a path that leads elsewhere or a bomb is refused by its header.
"""

import contextlib
import gzip
import hashlib
import http.client
import importlib.util
import io
import shutil
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, track, wrap_file

from vit.errors import UserError

VERSION = "3.0.2"  # of TFDS's builders of both sets
PIXELS = 3 * 32 * 32
TIMEOUT = 20  # seconds without a byte
ROOM = 200_000_000  # bytes that making a set may take
SMALL = 65_536  # bytes that a file of names or a readme may have


@dataclass(frozen=True)
class Cifar:
    """An official archive (https://www.cs.toronto.edu/~kriz/cifar.html) and what it holds."""

    url: str
    sha256: str
    folder: str
    records: dict[str, int]  # file → how many
    labels: dict[str, tuple[str, int]]  # one byte of a record each, in order: name → (file of class names, how many)

    def split(self, name: str) -> list[str]:
        """The files of a split."""
        return [file for file in self.records if file.startswith("test") == (name == "test")]


CIFARS = {
    "cifar10": Cifar(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        "cifar-10-batches-bin",
        {**{f"data_batch_{i}.bin": 10_000 for i in range(1, 6)}, "test_batch.bin": 10_000},
        {"label": ("batches.meta.txt", 10)},
    ),
    "cifar100": Cifar(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        "cifar-100-binary",
        {"train.bin": 50_000, "test.bin": 10_000},
        {"coarse_label": ("coarse_label_names.txt", 20), "label": ("fine_label_names.txt", 100)},
    ),
}


def prepare(name: str, folder: Path, archive: Path | None = None) -> None:
    """Make the TFDS set `name` in `folder`, from a CIFAR archive or, for other names, by TFDS itself.

    A set that's there is left alone. Raises `UserError`, and leaves no part of a set, if the archive is damaged, the
    network or the disk fails, or TFDS needs TensorFlow for this set.
    """
    if name not in CIFARS:
        if archive:
            raise UserError(f"--archive is for {' and '.join(CIFARS)}", str(archive), f"give vit prepare {name} without it")
        return _by_tfds(name, folder)
    done = folder / name / VERSION
    if done.exists():
        print(f"{name} is there: {done}")
        return
    if archive and not archive.is_file():
        raise UserError("there is no such archive", str(archive), "give the path of the .tar.gz, or leave --archive out")
    _make_room(folder)
    archive = archive or _download(CIFARS[name], folder / "downloads")
    _check_sum(archive, CIFARS[name])
    files = _read(archive, CIFARS[name])
    _write(name, CIFARS[name], files, folder)
    train, test = (sum(CIFARS[name].records[file] for file in CIFARS[name].split(split)) for split in ("train", "test"))
    print(f"{name}: {train:,} train and {test:,} test images in {done}")


def _make_room(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".preparing-*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    free = shutil.disk_usage(folder).free
    if free < ROOM:
        what = f"{free / 1e6:.0f} MB are free, making the set takes {ROOM / 1e6:.0f} MB"
        raise UserError(what, str(folder), "make room there, or give another --data.dir")


def _download(cifar: Cifar, folder: Path) -> Path:
    """The official archive, fetched unless it's there already."""
    path = folder / cifar.url.rpartition("/")[2]
    if path.is_file():
        print(f"{path} is there, not downloaded again")
        return path
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    bar = Progress("downloading", BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=Console(stderr=True))
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(cifar.url, timeout=TIMEOUT) as answer, partial.open("wb") as out, bar:
            task = bar.add_task("", total=int(answer.headers.get("Content-Length", 0)) or None)
            while block := answer.read(1 << 18):
                out.write(block)
                digest.update(block)
                bar.advance(task, len(block))
        if digest.hexdigest() != cifar.sha256:
            raise UserError("what arrived isn't the official file: its SHA-256 differs", cifar.url, "try again later")
        partial.replace(path)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        fix = "try again, or fetch it elsewhere and give --archive FILE"
        raise UserError(f"the download failed: {error}", cifar.url, fix) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _check_sum(archive: Path, cifar: Cifar) -> None:
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != cifar.sha256:
        print(
            f"WARNING: {archive} is not the official archive\n"
            f"  its SHA-256 is  {digest}\n  the official is {cifar.sha256}\n"
            "  results on it may not compare with published ones",
            file=sys.stderr,
        )


class _Capped(io.RawIOBase):
    """A stream that refuses to give more than so many bytes, so that a bomb costs neither memory nor disk."""

    def __init__(self, stream: BinaryIO, limit: int):
        self.stream, self.left = stream, limit

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(min(self.left + 1, 1 << 20) if size < 0 else min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise tarfile.ReadError("it unpacks to more than the set holds")
        return data


def _read(archive: Path, cifar: Cifar) -> dict[str, bytes]:
    """The archive's files, each proven to be one that belongs there and whole. Raises `UserError`."""

    def bad(what: str) -> UserError:
        return UserError(f"the archive is not {cifar.folder}: {what}", str(archive), "remove it and fetch it again")

    sizes = {file: count * (len(cifar.labels) + PIXELS) for file, count in cifar.records.items()}
    names = {file for file, _ in cifar.labels.values()}
    files: dict[str, bytes] = {}
    try:
        with (
            archive.open("rb") as packed,
            wrap_file(packed, archive.stat().st_size, description="reading", console=Console(stderr=True)) as shown,
        ):
            unpacked = _Capped(cast(BinaryIO, gzip.GzipFile(fileobj=shown)), sum(sizes.values()) + 16 * SMALL)
            with tarfile.open(fileobj=cast(Any, unpacked), mode="r|") as tar:
                for member in tar:
                    folder, _, file = member.name.rstrip("/").removeprefix("./").partition("/")
                    known = folder == cifar.folder and (file in sizes or file in names or file in ("", "readme.html"))
                    if not known:
                        raise bad(f"{member.name!r:.80} doesn't belong in it")
                    if not (member.isdir() if file == "" else member.isreg()):
                        raise bad(f"{member.name!r} is not a plain {'file' if file else 'folder'}")
                    if file in files:
                        raise bad(f"{member.name!r} is in it twice")
                    if file in sizes and member.size != sizes[file]:
                        raise bad(f"{member.name!r} has {member.size:,} bytes, not {sizes[file]:,}")
                    if member.size > SMALL and file not in sizes:
                        raise bad(f"{member.name!r} has {member.size:,} bytes, far too many")
                    content = tar.extractfile(member)
                    files[file] = content.read() if content else b""
            while unpacked.read():  # to the end, where gzip compares its own checksum
                pass
    except UserError:
        raise
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError) as error:
        raise bad(f"it is truncated or damaged ({error})") from error
    if missing := (sizes.keys() | names) - files.keys():
        raise bad(f"{min(missing)} is missing")
    for file in sizes:
        records = _records(files[file], cifar)
        for byte, (label, (_, count)) in enumerate(cifar.labels.items()):
            if (worst := int(records[:, byte].max())) >= count:
                raise bad(f"{file} has a {label} of {worst}, the largest is {count - 1}")
    for file, count in cifar.labels.values():
        if len(set(_class_names(files[file]))) != count:
            raise bad(f"{file} doesn't name {count} classes")
    return files


def _records(content: bytes, cifar: Cifar) -> np.ndarray:
    return np.frombuffer(content, np.uint8).reshape(-1, len(cifar.labels) + PIXELS)


def _class_names(content: bytes) -> list[str]:
    return [line.strip() for line in content.decode("utf-8", "replace").splitlines() if line.strip()]


def _write(name: str, cifar: Cifar, files: dict[str, bytes], folder: Path) -> None:
    """Write the set beside its place and move it there when it's whole."""
    work = Path(tempfile.mkdtemp(prefix=".preparing-", dir=folder))
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces what the bars on stderr show
            _builder(name, cifar, files, work).download_and_prepare()
        (folder / name).mkdir(exist_ok=True)
        (work / name / VERSION).rename(folder / name / VERSION)
    except RuntimeError as error:  # the record writer's own
        if "No space left" not in str(error):
            raise
        raise UserError("the disk is full", str(folder), "make room there, or give another --data.dir") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _builder(name: str, cifar: Cifar, files: dict[str, bytes], folder: Path) -> Any:
    """TFDS's builder of the set, given the bytes: the same name, version, features, keys and so the same order."""
    import tensorflow_datasets as tfds
    from PIL import Image
    from tensorflow_datasets.core.registered import skip_registration

    tfds.disable_progress_bar()
    names = {label: _class_names(files[file]) for label, (file, _) in cifar.labels.items()}

    def examples(split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        records = np.concatenate([_records(files[file], cifar) for file in cifar.split(split)])
        for i, record in enumerate(track(records, f"writing {split}", console=Console(stderr=True))):
            labels, pixels = record[: len(cifar.labels)], record[len(cifar.labels) :]
            png = io.BytesIO()
            Image.fromarray(pixels.reshape(3, 32, 32).transpose(1, 2, 0)).save(png, "png")
            yield i, {"id": f"{split}_{i:05d}", "image": png.getvalue(), **dict(zip(names, map(int, labels), strict=True))}

    with skip_registration():

        class Builder(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version(VERSION)

            def _info(self) -> Any:
                classes = {label: tfds.features.ClassLabel(names=known) for label, known in names.items()}
                image = tfds.features.Image(shape=(32, 32, 3))
                features = tfds.features.FeaturesDict({"id": tfds.features.Text(), "image": image, **classes})
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=features,
                    supervised_keys=("image", "label"),
                    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
                )

            def _split_generators(self, dl_manager: Any) -> Any:
                return {split: self._generate_examples(split) for split in ("train", "test")}

            def _generate_examples(self, split: str) -> Any:
                return examples(split)

    Builder.name = name
    return Builder(data_dir=str(folder), file_format="array_record")


def _by_tfds(name: str, folder: Path) -> None:
    """Let TFDS download and prepare one of its own sets."""
    import tensorflow_datasets as tfds

    if name not in tfds.list_builders(with_community_datasets=False):
        raise UserError(f"TFDS has no set called {name!r}", "the command line", "see tensorflow.org/datasets/catalog")
    if importlib.util.find_spec("tensorflow") is None:
        what = f"preparing {name} needs TensorFlow, which isn't installed (reading it won't)"
        raise UserError(what, "this Python environment", f"uv run --extra tf vit prepare {name} --data.dir {folder}")
    tfds.builder(name, data_dir=str(folder), file_format="array_record").download_and_prepare()
