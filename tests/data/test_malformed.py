"""Broken, odd and hostile files, folders and tables: each comes to its own end, and nothing else ever happens."""

import contextlib
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import REPO, program_environment
from tests.data import malformed
from tests.data.faults import FAULTS, folders
from vit.config import FolderData
from vit.data.check import quick
from vit.data.decode import BadImage, decode, header
from vit.data.folder import listing
from vit.errors import UserError

FILES = malformed.files()
PICTURES = malformed.pictures(1)


def test_how_many_there_are():
    families = Counter(file.family for file in FILES)
    assert len(families) >= 12
    assert min(families.values()) >= 3
    assert len(FILES) >= 120
    assert len(FAULTS) >= 60
    again = malformed.files()
    assert [f.content for f in again] == [f.content for f in FILES]
    assert [f.content for f in malformed.files(1)] != [f.content for f in FILES]


def outcome(file: malformed.File) -> str:
    """What is wrong with what became of a file; nothing is."""
    try:
        pixels = decode(file.content)
    except BadImage as refused:
        if file.image is not None and not file.either:
            return f"refused: {refused}"
        fitting = re.search(file.why, str(refused)) and len(str(refused)) < 200 and "\n" not in str(refused)
        return "" if fitting else f"for a wrong reason: {refused}"
    if file.image is None:
        return "decoded"
    if (pixels.dtype, pixels.shape) != (np.uint8, file.image.shape):
        return f"another shape: {pixels.shape}"
    off = np.abs(pixels.astype(float) - file.image).mean()
    return f"other pixels, {off:.1f} off" if off > file.off else ""


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_file_comes_to_its_end(seed):
    wrong = {f"{f.family}: {f.name}": outcome(f) for f in malformed.files(seed) if f.content is not None}
    assert {name: what for name, what in wrong.items() if what} == {}


def test_none_takes_much_memory():
    script = """
from tests.data.malformed import files
from vit.data.decode import BadImage, decode
them = [f for f in files() if f.content is not None]
decode(next(f for f in them if f.name == "png.jpg").content)
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024  # getrusage begins at the parent's
begin = peak()
for f in them:
    try:
        decode(f.content)
    except BadImage:
        pass
print(peak() - begin)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=REPO, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 500


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_comes_to_its_end(name, tmp_path):
    fault = FAULTS[name]
    root = tmp_path / "set"
    root.mkdir()
    given = fault.make(root) or root
    try:
        found = listing(FolderData(dir=str(given)))
        quick(found)
    except UserError as refused:
        fatal, found = [refused.what], None
    else:
        fatal = [problem.what for problem in found.problems if problem.fatal]
    if fault.error:
        assert any(re.search(fault.error, what) for what in fatal), fatal
        return
    assert found
    assert not fatal
    if fault.bad:
        assert [bool(re.search(fault.bad, why)) for why in found.bad.values()] == [True]
    else:
        assert not found.bad
        assert len(found.names) == fault.images
    warnings = [problem.what for problem in found.problems]
    assert len(warnings) == bool(fault.warning)
    assert re.search(fault.warning, "".join(warnings))


# ---- as a user runs it ----

CONFIG = """
from vit.config import *
def get_config():
    return Config(data=FolderData(size=32), model=ViTConfig(patch=16, width=16, depth=1, heads=1, mlp=16))
"""


def told(args: list, code: int, cwd: Path) -> list[str]:
    """The three lines that a command ends with."""
    command = [sys.executable, "-W", "error", *map(str, args)]
    env = {**program_environment(), "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == (3 if code else 0), done.stderr
    assert [line[:7] for line in lines] == ["error: ", "   at: ", "  fix: "][: len(lines)]
    return lines


@pytest.mark.parametrize(
    "name",
    ["a link to itself", "a path that leads out", "a table in Latin-1", "a name that isn't UTF-8", "a text called as an image"],
)
def test_vit_check_of_a_fault(name, tmp_path):
    (tmp_path / "set").mkdir()
    given = FAULTS[name].make(tmp_path / "set") or tmp_path / "set"
    lines = told(["-m", "vit", "check", given], 2, tmp_path)
    assert re.search(FAULTS[name].error or FAULTS[name].bad, lines[0])


@pytest.mark.parametrize("fault", ["an empty file", "a class in val alone"])
def test_train_refuses_before_anything_is_compiled(fault, tmp_path):
    (tmp_path / "set").mkdir()
    FAULTS[fault].make(tmp_path / "set")
    (tmp_path / "config.py").write_text(CONFIG)
    lines = told([REPO / "train.py", "--config", "config.py", "--data.dir", "set", "--workdir", "run"], 2, tmp_path)
    assert re.search(FAULTS[fault].error or FAULTS[fault].bad, lines[0])
    assert not (tmp_path / "run").exists()


# ---- whatever else there may be ----

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]


@st.composite
def mutated(draw) -> bytes:
    """A good file of any format with bytes changed, put in, left out, or its end cut off."""
    content = bytearray(draw(st.sampled_from(PICTURES[1:])))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.one_of(st.integers(0, min(64, len(content))), st.integers(0, len(content))))
        match draw(st.sampled_from(["flip", "set", "insert", "delete", "cut", "swap"])):
            case "flip" if at < len(content):
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                content[at : at + 4] = draw(
                    st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x01", b"\x80\0\0\0"])
                )
            case "insert":
                content[at:at] = draw(st.binary(min_size=1, max_size=20))
            case "delete":
                del content[at : at + draw(st.integers(1, 40))]
            case "cut":
                del content[at:]
            case "swap":
                content[at : at + 30] = content[at : at + 30][::-1]
    return bytes(content)


def decoded_or_refused(content: bytes) -> None:
    with contextlib.suppress(BadImage):
        pixels = decode(content)
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[-1] == 3
        assert pixels.flags.c_contiguous


@settings(max_examples=300, deadline=None, suppress_health_check=SLOW)
@given(mutated())
def test_any_mutation_is_decoded_or_refused(content):
    decoded_or_refused(content)


MAGICS = (
    b"",
    b"\xff\xd8",
    b"\xff\xd8\xff\xc0",
    malformed.PNG,
    b"RIFF\x40\0\0\0WEBPVP8 ",
    b"RIFF\x40\0\0\0WEBPVP8L",
    b"BM",
    b"GIF89a",
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(MAGICS), st.binary(max_size=300))
def test_any_bytes_are_decoded_or_refused(magic, rest):
    decoded_or_refused(magic + rest)


CELLS = st.one_of(
    st.sampled_from(
        ["train/cat/0.png", "val/dog/1.png", "cat", "dog", "train", "val", "", "../x", "/", ".", "-1", "7", "path", "label"]
    ),
    st.text(max_size=12),
)
CSV = st.lists(st.lists(CELLS, max_size=4).map(",".join), max_size=8).map("\n".join)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), CELLS), lambda x: st.lists(x, max_size=3), max_leaves=4
)
RECORDS = st.dictionaries(st.sampled_from(["path", "label", "split", "x"]), VALUES)
JSONL = st.lists(st.one_of(RECORDS, VALUES).map(json.dumps), max_size=8).map("\n".join)


@settings(max_examples=150, deadline=None, suppress_health_check=SLOW)
@given(
    st.sampled_from([".csv", ".jsonl"]),
    st.one_of(CSV.map(lambda x: f"path,label,split\n{x}"), CSV, JSONL, st.text(), st.binary()),
)
def test_any_table_is_read_or_refused(ending, text):
    content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    with tempfile.TemporaryDirectory() as folder:
        root = folders(Path(folder), 1, 1)
        (root / f"all{ending}").write_bytes(content)
        with contextlib.suppress(UserError):
            found = listing(FolderData(dir=str(root / f"all{ending}")))
            assert len(found.names) == len(found.labels) == len(found.splits) > 0
            assert all(os.path.realpath(root / name).startswith(os.path.realpath(root)) for name in found.names)
            for problem in found.problems:
                str(UserError(*problem[:3])).encode()


# ---- what takes long, or much memory ----


def progressive(scans):
    """A picture of 9,992 x 9,992 in its first scan, which as many do over again."""
    whole = malformed.saved(Image.new("L", (9_992, 9_992)), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * scans + whole[-2:]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (lambda: b"\xff\xd8" + b"\xff" * 20_000_000, "header is damaged"),
        (lambda: b"\xff\xd8" + b"\xff\xd0" * 10_000_000, "header is damaged"),
        (lambda: b"\xff\xd8" + b"\xff\xe5\0\2" * 5_000_000, "header is damaged"),
        (lambda: progressive(100), "too many scans"),
        (lambda: progressive(1)[:-2], "cut off"),
        (
            lambda: (
                malformed.png(8, 8, bytes(72), 8, 0)[:-12]
                + malformed.chunk(b"IDAT", b"") * 1_000_000
                + malformed.chunk(b"IEND", b"")
            ),
            "PNG chunks",
        ),
        (lambda: b"GIF89a\x08\0\x08\0\0\0\0" + b"!\xfe\1a\0" * 1_000_000 + b",", "header is damaged"),
    ],
    ids=["filling", "markers", "segments", "scans", "no end", "chunks", "comments"],
)
def test_what_would_take_minutes_is_refused_at_once(content, why):
    with pytest.raises(BadImage, match=why):
        decode(content())


def test_a_film_behind_a_jpeg_is_not_its_scans():
    data = malformed.saved(Image.new("L", (9_992, 9_992)), "JPEG")
    assert header(data + b"\xff\xda\0\2" * 100).height == 9_992


def test_a_file_that_is_no_image_is_not_read_whole(tmp_path):
    head = malformed.png(9_000, 9_000, b"")[:33] + struct.pack(">I", 790_000_000) + b"IDAT"
    for name, start, why in (("a.jpg", b"", "not a JPEG"), ("b.png", head, "far more"), ("c.jpg", b"\xff\xd8", "far more")):
        with (tmp_path / name).open("wb") as file:
            file.write(start)
            file.truncate(790_000_000)  # sparse: it takes no room
        with pytest.raises(BadImage, match=why):
            decode(tmp_path / name)


MEMORY = """
import struct, zlib
from tests.data.malformed import png, pictures, announced
from vit.data.decode import BadImage, decode
decode(pictures(0).png)
packing = zlib.compressobj()
half = b"".join(packing.compress(bytes(29_998)) for _ in range(5_000)) + packing.flush()
one = png(9_999, 9_999, b"")
start = one[: one.index(b"IDAT") - 4]
kind = lambda name, x: struct.pack(">I", len(x)) + name + x + struct.pack(">I", zlib.crc32(name + x))
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024  # getrusage begins at the parent's
begin = peak()
bmp = announced(pictures(0).bmp, "bmp", 9_999, 9_999)
for bad in (start + kind(b"IDAT", half) + kind(b"IEND", b""), bmp + bytes(100_000_000)):
    try:
        decode(bad)
    except BadImage:
        continue
    raise SystemExit("decoded")
print(peak() - begin)
"""


def test_what_lacks_half_its_rows_is_refused_before_it_takes_the_memory():
    done = subprocess.run([sys.executable, "-c", MEMORY], cwd=REPO, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 350  # the BMP itself has 100 MB, and its copy
