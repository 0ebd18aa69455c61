"""The notebooks are committed as they are written: nothing run, nothing of this machine in them. tests/heavy runs them."""

import ast
import json

import pytest

from tests.conftest import REPO

NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_a_notebook_has_no_outputs_and_is_python(path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"].keys() == {"kernelspec", "language_info"}
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            ast.parse("".join(cell["source"]))


def test_both_are_there():
    assert [path.name for path in NOTEBOOKS] == ["cifar10_tpu.ipynb", "finetune.ipynb"]
