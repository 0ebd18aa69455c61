"""The pages: whole without the network, safe, and there even where files are missing or damaged."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_score, recall_score

from vit.cli import run as vit
from vit.errors import UserError
from vit.report.page import PICTURES, class_table, read, report

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that tags close in order; collects texts, links and pictures."""

    def __init__(self, path):
        super().__init__()
        self.open, self.texts, self.links, self.pictures, self.tags = [], [], [], [], set()
        self.source = path.read_text()
        self.feed(self.source)
        assert self.open == []
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("src", "href", "action", "data") if name in attributes]
        if tag == "img":
            assert attributes["alt"]
            self.pictures.append(base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"), validate=True))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.texts.append(data.strip())


def page(path):
    """The page, proven to need nothing but itself."""
    parsed = Page(path)
    assert all(link.startswith("data:") for link in parsed.links)
    assert not re.search(r"https?://|url\(|@import", parsed.source)
    assert 'name="viewport"' in parsed.source
    return parsed


@pytest.fixture
def copied(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("report.html"))
    return tmp_path / "run"


def test_a_finished_run(copied, capsys):
    vit(["report", str(copied)])
    assert f"look at {copied}/report.html" in capsys.readouterr().out
    parsed = page(copied / "report.html")
    wanted = [(copied / name).read_bytes() for name in PICTURES if (copied / name).exists()]
    assert sorted(parsed.pictures) == sorted(wanted)
    figures = json.loads((copied / "eval.json").read_text())
    assert f"{figures['top1']:.2%}" in parsed.text
    assert "finished after 12 steps" in parsed.text
    assert "optim.weight_decay" in parsed.text
    assert all(version in parsed.text for version in ("jax", "python"))


def test_the_table_of_classes_is_scikit_learns(tmp_path):
    rng, names = np.random.default_rng(0), [f"c{i}" for i in range(7)]
    labels, probabilities = rng.integers(0, 6, 200), rng.random((200, 7))
    probabilities[:, 5] = 0  # a class that is never said, and one (6) that never was
    np.savez(tmp_path / "p.npz", labels=labels, probabilities=probabilities)
    guess, everything = probabilities.argmax(axis=1), list(range(7))
    rows = class_table(tmp_path / "p.npz", names)
    assert [row[:2] for row in rows] == [[name, np.sum(labels == k)] for k, name in enumerate(names)]
    recall = recall_score(labels, guess, labels=everything, average=None, zero_division=np.nan)
    precision = precision_score(labels, guess, labels=everything, average=None, zero_division=np.nan)
    for row, r, p in zip(rows, recall, precision, strict=True):
        assert row[2] is None if np.isnan(r) else row[2] == pytest.approx(r)
        assert row[3] is None if np.isnan(p) else row[3] == pytest.approx(p)
    matrix = confusion_matrix(labels, guess, labels=everything)
    np.fill_diagonal(matrix, 0)
    assert rows[0][4] == f"{names[matrix[0].argmax()]} ({matrix[0].max()})"
    assert rows[6][4] == ""


def test_a_run_that_was_stopped_before_anything_was_evaluated(copied):
    for path in copied.iterdir():
        if path.name not in ("config.json", "train_batch.png", "environment.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    report(copied)
    parsed = page(copied / "report.html")
    assert "stopped at step 0 of 12" in parsed.text
    assert "Not evaluated on the test split yet" in parsed.text
    assert len(parsed.pictures) == 1


def test_without_a_test_the_classes_are_those_of_the_last_validation(copied):
    for name in ("eval.json", "predictions.npz"):
        (copied / name).unlink()
    shutil.rmtree(copied / "checkpoints")
    lines = (copied / "metrics.jsonl").read_text().splitlines()
    (copied / "metrics.jsonl").write_text("\n".join(lines[:-3]) + '\n{"step": 9, "spl')
    report(copied)
    parsed = page(copied / "report.html")
    last = [json.loads(line) for line in lines[:-3] if '"val"' in line][-1]
    assert f"stopped at step {max(json.loads(line)['step'] for line in lines[:-3])} of 12" in parsed.text
    assert f"{last['per_class_accuracy']['3']:.1%}" in parsed.text


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"PK\x03\x04 not a zip"])
@pytest.mark.parametrize("name", ["eval.json", "predictions.npz", "environment.json", "config.json", "metrics.jsonl"])
def test_damaged_files_are_named_and_the_rest_is_shown(copied, name, content):
    (copied / name).write_bytes(content)
    report(copied)
    parsed = page(copied / "report.html")
    if name != "metrics.jsonl":
        assert f"{name} can't be read" in parsed.text
    assert len(parsed.pictures) > 2


def test_names_are_only_text(copied):
    figures = json.loads((copied / "eval.json").read_text())
    evil = "<script>alert(1)</script> & \"'"
    shares = list(figures["per_class_accuracy"].values())
    figures["per_class_accuracy"] = dict(zip([evil, *map(str, range(1, 10))], shares, strict=True))
    (copied / "eval.json").write_text(json.dumps({**figures, "dataset": evil}))
    report(copied)
    parsed = page(copied / "report.html")
    assert "script" not in parsed.tags
    assert evil in parsed.text


def test_updates_that_were_skipped_and_ways_back_are_told(copied):
    with (copied / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "split": "event", "rolled_back_to": 4, "rollbacks": 1, "skipped": 3}\n')
    report(copied)
    assert "skipped 3, rolled back to 4, rollbacks 1" in page(copied / "report.html").text


def test_comparing_shows_what_differs(trained, copied, tmp_path, capsys):
    config = json.loads((copied / "config.json").read_text())
    config["optim"]["lr"], config["seed"] = 0.5, 7
    (copied / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out.html"
    vit(["report", str(trained), str(copied), "--out", str(out)])
    assert str(out) in capsys.readouterr().out
    parsed = page(out)
    differing, same = parsed.text.split("Settings that are the same")
    differing = differing.split("Settings that differ")[1]
    assert "optim.lr" in differing
    assert "0.5" in differing
    assert "seed" in differing
    assert "model.width" not in differing
    assert "model.width" in same
    assert len(parsed.pictures) == 1 + 2 * (len(read(trained).pictures) - 1)


@pytest.mark.parametrize("args", [["report"], ["report", "nowhere"], ["report", "--out", "x"], ["report", "."]])
def test_mistakes(tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        vit(args)


def test_a_place_that_cannot_be_written(trained, tmp_path):
    with pytest.raises(UserError, match="the report can't be written"):
        vit(["report", str(trained), str(trained), "--out", str(tmp_path / "no" / "such" / "folder.html")])
