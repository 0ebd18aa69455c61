"""Every fault of masks and lists: an error of three lines that names the file, before anything is compiled."""

import ast
import re
import sys

import pytest

from tests.conftest import REPO
from tests.data.mask_faults import CASES, FAULTS
from tests.data.test_check import tree
from vit.errors import UserError

NAMES = "masks maskset maskfiles maskforms masklists maskcrop masktfds maskcheck coco segments legend"
NOISE = r"Traceback|<class|<function|Path\(|PosixPath|\bNone\b|  |\[Errno|invalid literal|object at 0x|\w+Error\("
VERBS = "add bring check choose give leave make mend move prepare put remove rename run save take use"


@pytest.mark.parametrize("name", CASES)
def test_the_error_has_three_lines(tmp_path, name):
    with pytest.raises(UserError) as told:
        CASES[name](tmp_path)
    lines = str(told.value).splitlines()
    assert [line[:7] for line in lines] == ["error: ", "   at: ", "  fix: "]
    for line in lines:
        assert 0 < len(line[7:].strip()) < 300
        assert not re.search(NOISE, line[7:].replace(str(tmp_path), "")), line
    assert lines[2][7:].split()[0] in VERBS.split(), lines[2]
    if name in FAULTS:
        assert FAULTS[name].words in told.value.what
        assert FAULTS[name].where in told.value.where


@pytest.mark.parametrize("name", [name for name in CASES if name in FAULTS][::5])
def test_nothing_is_changed(tmp_path, name):
    from tests.data.mask_faults import built, config
    from vit.data.masks import MaskImages

    root = built(tmp_path / "set", FAULTS[name])
    before = tree(root)
    with pytest.raises(UserError):
        MaskImages(config(root, **FAULTS[name].settings), "train")
    assert tree(root) == before


def test_every_place_that_makes_an_error_has_a_case(tmp_path, monkeypatch):
    reached, make = set(), UserError.__init__

    def noting(self, *args):
        caller = sys._getframe(1)
        reached.add((caller.f_code.co_filename, caller.f_lineno))
        make(self, *args)

    monkeypatch.setattr(UserError, "__init__", noting)
    for i, case in enumerate(CASES.values()):
        (folder := tmp_path / str(i)).mkdir()
        with pytest.raises(UserError):
            case(folder)
    missed = []
    for path in (REPO / "vit" / "data" / f"{name}.py" for name in NAMES.split()):
        here = {line for file, line in reached if file == str(path)}
        for node in ast.walk(ast.parse(path.read_text())):
            made = isinstance(node, ast.Call) and ast.unparse(node.func) == "UserError"
            if made and here.isdisjoint(range(node.lineno, node.end_lineno + 1)):
                missed.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    assert not missed, "\n".join(missed)
