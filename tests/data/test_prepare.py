import gzip
import http.server
import io
import random
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vit.config import TfdsData
from vit.data import prepare as module
from vit.data.prepare import CIFARS, PIXELS, prepare
from vit.data.sources import Tfds, describe
from vit.errors import UserError

CLASSES = {"cifar10": 10, "cifar100": 100}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The official archives, with 20 records in a file."""
    for name, cifar in CIFARS.items():
        monkeypatch.setitem(module.CIFARS, name, replace(cifar, records=dict.fromkeys(cifar.records, 20)))


def contents(name: str) -> dict[str, bytes]:
    """Files of an archive: random pixels, every label in turn."""
    cifar, rng = module.CIFARS[name], np.random.default_rng(0)
    files = {}
    for file, count in cifar.records.items():
        labels = [np.arange(count) % classes for _, classes in cifar.labels.values()]
        files[file] = np.column_stack([*labels, rng.integers(0, 256, (count, PIXELS))]).astype(np.uint8).tobytes()
    for file, count in cifar.labels.values():
        files[file] = "\n".join(f"name {i}" for i in range(count)).encode() + b"\n\n"
    return files


def member(tar: tarfile.TarFile, name: str, content: bytes = b"", **changes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(content))


def pack(path: Path, name: str, files: dict[str, bytes], before=lambda tar: None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        before(tar)
        for file, content in files.items():
            member(tar, f"{module.CIFARS[name].folder}/{file}", content)
    return path


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_set_has_every_pixel_and_label_and_tfds_reads_it(tmp_path, name, capsys):
    import tensorflow_datasets as tfds

    files = contents(name)
    prepare(name, tmp_path / "sets", pack(tmp_path / "a.tar.gz", name, files))
    assert "WARNING" in capsys.readouterr().err  # it isn't the official file

    cifar = module.CIFARS[name]
    for split in ("train", "test"):
        records = np.concatenate([module._records(files[file], cifar) for file in cifar.split(split)])
        source = tfds.data_source(name, data_dir=str(tmp_path / "sets"), split=split)
        assert len(source) == len(records)
        for i in range(len(source)):
            example = source[i]
            record = records[int(example["id"].decode().removeprefix(f"{split}_"))]
            assert [example[label] for label in cifar.labels] == list(record[: len(cifar.labels)])
            np.testing.assert_array_equal(example["image"], record[-PIXELS:].reshape(3, 32, 32).transpose(1, 2, 0))
    assert not list((tmp_path / "sets").glob(".*"))
    prepare(name, tmp_path / "sets", tmp_path / "a.tar.gz")
    assert "is there" in capsys.readouterr().out


def test_the_source_knows_places_classes_and_sizes(tmp_path):
    prepare("cifar10", tmp_path, pack(tmp_path / "a.tar.gz", "cifar10", contents("cifar10")))
    config = TfdsData(dir=str(tmp_path), train="train[:70]", val="train[70:]")
    train, val, test = (Tfds(config, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (70, 30, 20)
    assert [val[i]["id"] for i in range(30)] == list(range(70, 100))
    assert describe(train)["image_size"] == [32, 32]
    assert train.class_names[3] == "name 3"
    streamed = Tfds(replace(config, stream=True), "val")
    np.testing.assert_array_equal(streamed[4]["image"], val[4]["image"])
    cropped = Tfds(replace(config, stream=True, size=16), "val")
    assert cropped[0]["image"].shape == cropped.drawn(0, random.Random(0))["image"].shape == (16, 16, 3)
    with pytest.raises(UserError, match="no split 'validation'"):
        Tfds(replace(config, val="validation"), "val")


def link(tar):
    member(tar, "cifar-10-batches-bin/data_batch_1.bin", type=tarfile.SYMTYPE, linkname="/etc/passwd")


def hard_link(tar):
    member(tar, "cifar-10-batches-bin/readme.html", type=tarfile.LNKTYPE, linkname="../../secret")


def bomb(tar):
    """An extended header, which tarfile reads whole, of 40 MB of zeros."""
    member(tar, "cifar-10-batches-bin/readme.html", bytes(40_000_000), type=tarfile.XHDTYPE)


FAULTS = {
    "a link": (link, "not a plain file"),
    "a hard link": (hard_link, "not a plain file"),
    "a device": (lambda tar: member(tar, "cifar-10-batches-bin/readme.html", type=tarfile.CHRTYPE), "not a plain file"),
    "a traversal path": (lambda tar: member(tar, "../../evil", b"x"), "doesn't belong"),
    "an absolute path": (lambda tar: member(tar, "/cifar-10-batches-bin/test_batch.bin", b"x"), "doesn't belong"),
    "a traversal inside": (lambda tar: member(tar, "cifar-10-batches-bin/../x", b"x"), "doesn't belong"),
    "a wrong member": (lambda tar: member(tar, "cifar-10-batches-bin/data_batch_9.bin", b"x"), "doesn't belong"),
    "another set's folder": (lambda tar: member(tar, "cifar-100-binary/train.bin", b"x"), "doesn't belong"),
    "twice the same": (lambda tar: [member(tar, "cifar-10-batches-bin/readme.html", b"x") for _ in "ab"], "twice"),
    "a large readme": (lambda tar: member(tar, "cifar-10-batches-bin/readme.html", bytes(100_000)), "far too many"),
    "a wrong size": (lambda tar: member(tar, "cifar-10-batches-bin/test_batch.bin", b"x" * 5), "has 5 bytes"),
    "a bomb": (bomb, "more than the set holds"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_member_that_does_not_belong_is_refused(tmp_path, fault):
    before, said = FAULTS[fault]
    refused(tmp_path, pack(tmp_path / "a.tar.gz", "cifar10", contents("cifar10"), before), said)


def refused(tmp_path, archive, said):
    with pytest.raises(UserError, match=said) as caught:
        prepare("cifar10", tmp_path / "sets", archive)
    assert str(caught.value).count("\n") == 2
    assert list((tmp_path / "sets").rglob("*")) == []


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9, 0.9999])
def test_a_truncated_archive_is_refused(tmp_path, share):
    archive = pack(tmp_path / "a.tar.gz", "cifar10", contents("cifar10"))
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(len(whole) * share)])
    refused(tmp_path, archive, "truncated or damaged|is missing")


def test_flipped_bits_are_found(tmp_path):
    """In the pixels too, which only gzip's own checksum covers."""
    archive = pack(tmp_path / "a.tar.gz", "cifar10", contents("cifar10"))
    whole = archive.read_bytes()
    for place in np.random.default_rng(0).integers(12, len(whole), 12):
        archive.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        refused(tmp_path, archive, "the archive is not cifar-10-batches-bin")


def test_what_is_inside_must_make_sense(tmp_path):
    good = contents("cifar10")
    name = "cifar10"
    for files, said in (
        ({**good, "test_batch.bin": b"\x0a" + good["test_batch.bin"][1:]}, "a label of 10, the largest is 9"),
        ({**good, "batches.meta.txt": b"cat\ndog\n"}, "doesn't name 10 classes"),
        ({file: x for file, x in good.items() if file != "data_batch_3.bin"}, "data_batch_3.bin is missing"),
        ({}, "is missing"),
    ):
        refused(tmp_path, pack(tmp_path / "a.tar.gz", name, files), said)
    (tmp_path / "b.tar.gz").write_bytes(b"no archive at all")
    refused(tmp_path, tmp_path / "b.tar.gz", "truncated or damaged")
    (tmp_path / "c.tar.gz").write_bytes(gzip.compress(bytes(50_000_000)))
    refused(tmp_path, tmp_path / "c.tar.gz", "not cifar-10-batches-bin")


def test_a_full_disk_and_a_missing_archive_are_told(tmp_path, monkeypatch):
    archive = pack(tmp_path / "a.tar.gz", "cifar10", contents("cifar10"))
    monkeypatch.setattr(module, "ROOM", 10**18)
    refused(tmp_path, archive, "MB are free")
    monkeypatch.setattr(module, "ROOM", 0)

    def full(*_):
        raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr(module, "_builder", full)
    refused(tmp_path, archive, "the disk is full")
    with pytest.raises(UserError, match="no such archive"):
        prepare("cifar10", tmp_path / "sets", tmp_path / "none.tar.gz")


class Server(http.server.BaseHTTPRequestHandler):
    """Serves the bytes in `body`, or fails as told."""

    body, fail = b"", ""

    def do_GET(self):
        if self.fail == "hang":
            self.server.hang.wait(20)
            return
        self.send_response(404 if self.fail == "missing" else 200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body[: len(self.body) // 2] if self.fail == "short" else self.body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.hang = threading.Event()
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setattr(module, "TIMEOUT", 0.3)
        yield f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz"
        server.hang.set()
        server.shutdown()


def test_downloads(tmp_path, server, monkeypatch, capsys):
    import hashlib

    Server.body = pack(tmp_path / "a.tar.gz", "cifar10", contents("cifar10")).read_bytes()
    cifar = replace(module.CIFARS["cifar10"], url=server, sha256=hashlib.sha256(Server.body).hexdigest())
    monkeypatch.setitem(module.CIFARS, "cifar10", cifar)
    for fail in ("missing", "short", "hang"):
        monkeypatch.setattr(Server, "fail", fail)
        with pytest.raises(UserError, match=r"download failed|SHA-256 differs"):
            prepare("cifar10", tmp_path / "sets")
        assert [p.name for p in (tmp_path / "sets").rglob("*")] == ["downloads"]
    monkeypatch.setattr(Server, "fail", "")
    prepare("cifar10", tmp_path / "sets")
    assert len(Tfds(TfdsData(dir=str(tmp_path / "sets")), "test")) == 20
    assert "WARNING" not in capsys.readouterr().err
    monkeypatch.setitem(module.CIFARS, "cifar10", replace(cifar, sha256="0" * 64))
    with pytest.raises(UserError, match="SHA-256 differs"):
        prepare("cifar10", tmp_path / "others")


def test_other_sets(tmp_path):
    with pytest.raises(UserError, match="no set called 'cifar11'"):
        prepare("cifar11", tmp_path)
    with pytest.raises(UserError, match="--archive is for cifar10 and cifar100"):
        prepare("mnist", tmp_path, tmp_path / "x")
    if module.importlib.util.find_spec("tensorflow") is None:
        with pytest.raises(UserError, match="needs TensorFlow") as caught:
            prepare("mnist", tmp_path)
        assert "--extra tf" in caught.value.fix
    with pytest.raises(UserError, match="mnist isn't prepared here") as caught:
        Tfds(TfdsData(name="mnist", dir=str(tmp_path)), "train")
    assert caught.value.fix == f"uv run vit prepare mnist --data.dir {tmp_path}"
