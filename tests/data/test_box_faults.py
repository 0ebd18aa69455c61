"""Every fault of boxes: an error of three lines that names file and line, before anything is compiled, or a counted drop."""

import ast
import re
import sys

import pytest

from tests.conftest import REPO
from tests.data.box_faults import CASES, FAULTS, built, config
from tests.data.test_check import tree
from tests.data.test_mask_faults import NOISE, VERBS
from vit.data.boxes import BoxImages
from vit.errors import UserError

REACHED: set[tuple[str, int]] = set()


@pytest.mark.parametrize("name", CASES)
def test_the_error_has_three_lines(tmp_path, monkeypatch, name):
    make = UserError.__init__

    def noting(self, *args):
        caller = sys._getframe(1)
        REACHED.add((caller.f_code.co_filename, caller.f_lineno))
        make(self, *args)

    monkeypatch.setattr(UserError, "__init__", noting)
    with pytest.raises(UserError) as told:
        CASES[name](tmp_path)
    lines = str(told.value).splitlines()
    assert [line[:7] for line in lines] == ["error: ", "   at: ", "  fix: "]
    for line in lines:
        assert 0 < len(line[7:].replace(str(tmp_path), "").strip()) < 300
        assert not re.search(NOISE, line[7:].replace(str(tmp_path), "")), line
    assert lines[2][7:].split()[0] in VERBS.split(), lines[2]
    if name in FAULTS:
        assert FAULTS[name].words in told.value.what
        assert FAULTS[name].where in told.value.where
        assert ("--data.bad-boxes drop" in told.value.fix) == FAULTS[name].drops


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.drops])
def test_it_is_dropped_and_counted(tmp_path, name):
    root = built(tmp_path / "set", FAULTS[name])
    before = tree(root)
    source = BoxImages(config(root, bad_boxes="drop", bad_images="skip", **FAULTS[name].settings), "train")
    (told,) = [line for line in source.said if "faults of annotations are dropped" in line]
    assert re.match(r"\d+ faults", told)
    assert FAULTS[name].words in told
    assert FAULTS[name].where in told
    if "Annotations/000.xml" not in FAULTS[name].where or "size" not in name:
        for i in range(len(source)):
            assert ((source[i]["label"] >= 0).sum() == 0) or source[i]["boxes"].max() <= 1
    assert tree(root) == before


def test_there_are_enough():
    assert sum(fault.drops for fault in FAULTS.values()) > 25


def test_every_place_that_makes_an_error_has_a_case(tmp_path):
    for i, case in enumerate(CASES.values() if not REACHED else ()):
        (folder := tmp_path / str(i)).mkdir()
        with pytest.raises(UserError):
            case(folder)
    missed = []
    for path in sorted((REPO / "vit" / "data").glob("box*.py")):
        here = {line for file, line in REACHED if file == str(path)}
        for node in ast.walk(ast.parse(path.read_text())):
            made = isinstance(node, ast.Call) and ast.unparse(node.func) == "UserError"
            if made and here.isdisjoint(range(node.lineno, node.end_lineno + 1)):
                missed.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    assert not missed, "\n".join(missed)
