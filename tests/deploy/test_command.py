"""`vit predict` as a user runs it."""

import contextlib
import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from tests.conftest import REPO, colours, program_environment
from tests.conftest import run as run_program
from tests.deploy.tiny import digit_files, tiny_run
from vit import cli
from vit.deploy.command import shown, split
from vit.deploy.images import find
from vit.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("tiny") / "run")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return digit_files(tmp_path_factory.mktemp("digits"))


def start(*args, **options):
    """The program, with warnings as errors."""
    env = {**program_environment(), "PYTHONPATH": str(REPO)}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-W", "error", "-m", "vit", "predict", *args], **{**pipes, "env": env, **options})


def rows(folder):
    """predictions.csv and predictions.jsonl."""
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    with (folder / "predictions.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file)), [json.loads(line) for line in lines]


def contents(folder):
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).digest() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_with_a_bad_file_is_predicted_as_it_is_evaluated(run, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "here"
    digit_files(photos / "sub")
    out.mkdir()
    os.rename(photos / "sub" / "0000.png", photos / "sub" / '0000 über 数字, "x".png')
    os.rename(photos / "sub" / "0001.png", os.fsencode(photos / "sub") + b"/0001 \xff\n.png")
    (photos / "sub" / "0002a.jpg").write_bytes(b"\xff\xd8 no more")
    (photos / "notes.txt").write_text("not an image")
    before = contents(photos)
    process = start("--workdir", str(run), str(photos), cwd=out)
    printed, err = (text.decode(errors="surrogateescape") for text in process.communicate(timeout=300))
    assert process.returncode == 2, err
    assert contents(photos) == before

    lines = [line.split("\t") for line in printed.splitlines()]
    assert len(lines) == 360
    table, objects = rows(out)
    assert len(table) == len(objects) == 361
    assert [row["path"] for row in table] == [row["path"] for row in objects]
    assert [row["path"] for row in table] == [str(p) for p in sorted((photos / "sub").iterdir())]
    bad = [i for i, row in enumerate(table) if row["error"]]
    assert bad == [3]
    assert objects[3] == {"path": str(photos / "sub" / "0002a.jpg"), "error": table[3]["error"]}
    good = [row for row in table if not row["error"]]
    assert [line[0] for line in lines] == [shown(row["path"]) for row in good]
    assert [line[1] for line in lines] == [row["label"] for row in good]
    assert lines[0][0].endswith('/0000 über 数字, "x".png')
    assert lines[1][0].endswith("\\n.png")
    assert lines[2][3] == ", ".join(
        f"{good[2][f'label{i}']} {float(good[2][f'probability{i}']):.1%}" for i in ["", "_2", "_3", "_4", "_5"]
    )

    assert err.splitlines()[0].startswith(f"bad: {photos}/sub/0002a.jpg: ")
    assert err.splitlines()[-3:] == [
        "error: 1 of 361 files couldn't be read; the others are predicted",
        "   at: predictions.csv",
        "  fix: see its column error; mend those files or leave them out",
    ]

    run_program("eval.py", "--workdir", run)
    expected = np.load(run / "predictions.npz")["probabilities"]
    names = list("0123456789")
    found = np.array([[row["probabilities"][name] for name in names] for row in objects if "error" not in row])
    # The last batch is another one, so these are bitwise the same only up to the rounding of sums.
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(found[:320], expected[:320])


def test_paths_on_stdin_and_ctrl_c(run, files, tmp_path):
    with start("--workdir", str(run), "-", "--out", str(tmp_path), text=True) as process:
        process.stdin.write("".join(f"{path}\n" for path in files[:100]))
        process.stdin.flush()
        printed = [process.stdout.readline()]
        process.send_signal(signal.SIGINT)
        process.stdin.close()
        printed += process.stdout.readlines()
        err = process.stderr.read()
    assert process.returncode == 75, err
    table, objects = rows(tmp_path)
    assert 1 <= len(table) == len(objects) == len(printed) < 100
    assert [line.split("\t")[0] for line in printed] == [str(path) for path in files[: len(table)]]
    assert err.splitlines()[-1] == f"stopped after {len(table)} images; they are in {tmp_path}/predictions.csv"


def test_a_reader_that_leaves_ends_it(run, files, tmp_path):
    with start("--workdir", str(run), str(files[0].parent), "--out", str(tmp_path)) as process:
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read().decode()
    assert process.returncode in (0, 75), err
    assert "Traceback" not in err


def predict(capsys, *args):
    """In this process: what it printed."""
    capsys.readouterr()
    cli.run(["predict", *map(str, args)])
    return capsys.readouterr()


def test_files_and_patterns_in_any_order_of_flags(run, files, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    pattern = str(files[0].parent / "001*.png")
    printed, err = predict(capsys, files[5], "--out", out, pattern, f"--workdir={run}", "--checkpoint", "best", "--", files[7])
    paths = [line.split("\t")[0] for line in printed.splitlines()]
    assert paths == [str(files[i]) for i in (5, *range(10, 20), 7)]
    assert err.splitlines()[-1] == f"12 images: {out}/predictions.csv, {out}/predictions.jsonl"
    table, objects = rows(out)
    assert len(table) == len(objects) == 12
    assert objects[0]["probability"] == pytest.approx(float(table[0]["probability"]), abs=1e-6)
    assert sum(objects[0]["probabilities"].values()) == pytest.approx(1)
    predict(capsys, f"--workdir={run}", files[0], "--out", out)  # its own results are replaced
    assert len(rows(out)[0]) == 1


def test_pictures(run, files, tmp_path, capsys):
    flags = ["--workdir", run, "--out", tmp_path, "--save-images", "--attention", "--block", 0]
    predict(capsys, *flags, files[3], files[4])
    made = sorted(p.name for p in (tmp_path / "predictions").iterdir())
    assert made == [f"00000{i}-000{n}{end}.png" for i, n in ((1, 3), (2, 4)) for end in ("", "-attention")] or made == [
        f"00000{i}-000{n}{end}.png" for i, n in ((1, 3), (2, 4)) for end in ("-attention", "")
    ]
    for path in (tmp_path / "predictions").iterdir():
        picture = imread(path)[..., :3]
        assert picture.std() > 0.05
        assert colours(picture) > 30


def test_the_pictures_are_not_taken_for_images(tmp_path):
    paths = digit_files(tmp_path, 3)
    digit_files(tmp_path / "predictions", 2)
    digit_files(tmp_path / "b", 1)
    digit_files(tmp_path / ".hidden", 1)
    os.symlink(tmp_path, tmp_path / "b" / "round")
    (tmp_path / ".a.png").write_bytes(b"")
    own = tmp_path / "predictions"
    assert list(find([str(tmp_path)], own)) == [*map(str, paths), str(tmp_path / "b" / "0000.png")]
    everywhere = list(find([str(tmp_path / "**" / "*.png")], own))
    assert not [path for path in everywhere if path.startswith(str(own))]
    assert len(list(find([str(own)], own))) == 2
    odd = tmp_path / "[x].png"
    odd.write_bytes(paths[0].read_bytes())
    assert list(find([str(odd)])) == [str(odd)]


def test_results_never_come_among_the_images_unasked(run, tmp_path, monkeypatch, capsys):
    digit_files(tmp_path / "photos", 2)
    for here, source in ((tmp_path, "."), (tmp_path / "photos", "."), (tmp_path / "photos", tmp_path)):
        monkeypatch.chdir(here)
        with pytest.raises(UserError, match="among the images"):
            predict(capsys, "--workdir", run, source)
    assert len(list((tmp_path / "photos").iterdir())) == 2
    predict(capsys, "--workdir", run, ".", "--out", ".")
    assert len(rows(tmp_path / "photos")[0]) == 2


def test_another_file_of_that_name_is_kept(run, files, tmp_path, capsys):
    for name in ("predictions.csv", "predictions.jsonl"):
        folder = tmp_path / name.partition(".")[2]
        folder.mkdir()
        (folder / name).write_text("my own")
        with pytest.raises(UserError, match=f"there is another {name}"):
            predict(capsys, "--workdir", run, files[0], "--out", folder)
        assert (folder / name).read_text() == "my own"


def test_empty_stdin(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n\n")))
    with pytest.raises(UserError, match="no paths came on stdin"):
        predict(capsys, "--workdir", run, "-", "--out", tmp_path)


def test_missing_paths_on_stdin_are_bad_files(run, files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"nowhere.png\n" + os.fsencode(files[0]) + b"\r\n")))
    with pytest.raises(UserError, match="1 of 2 files"):
        predict(capsys, "--workdir", run, "-", "--out", tmp_path)
    assert [bool(row["error"]) for row in rows(tmp_path)[0]] == [True, False]


def test_a_command_line_is_split_into_sources_and_flags():
    args = ["a", "--out", "x", "-", "--attention", "b", "--block", "-1", "--workdir=r", "--", "--c"]
    assert split(args) == (["a", "-", "b", "--c"], ["--out", "x", "--attention", "--block", "-1", "--workdir=r"])
    assert split(["--workdir"]) == ([], ["--workdir"])


def test_names_cannot_drive_a_terminal():
    assert shown("a\x1b[2J\tb\r\n\x7f\x9b é数") == "a\\x1b[2J\\tb\\r\\n\\x7f\\x9b é数"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals here")
def test_a_bar_on_the_terminal_leaves_stdout_alone(run, files, tmp_path):
    terminal, end = os.openpty()
    env = {**program_environment(), "PYTHONPATH": str(REPO), "TERM": "xterm-256color", "COLUMNS": "100"}
    with start("--workdir", str(run), str(files[0].parent), "--out", str(tmp_path), stderr=end, env=env) as process:
        os.close(end)
        printed, seen = process.stdout.read().decode(), b""
        with contextlib.suppress(OSError):  # so a terminal's other end says that it's over
            while part := os.read(terminal, 4096):
                seen += part
    os.close(terminal)
    assert process.returncode == 0
    assert len(printed.splitlines()) == 360
    assert b"360" in seen
    assert b"ETA" in seen
