"""The notebooks are committed as they are written: nothing run, nothing of this machine in them. tests/heavy runs them."""

import ast
import json
import os
import subprocess
import sys

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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_a_clone_beside_the_notebook_is_not_taken_for_the_package(path, tmp_path):
    """As on Colab, where the notebook lies in /content and the clone in /content/vit."""
    code = next("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if "find_spec" in str(cell["source"]))
    (tmp_path / "vit" / "vit").mkdir(parents=True)
    (tmp_path / "IPython").mkdir()
    (tmp_path / "IPython" / "display.py").write_text("Image = Markdown = display = None")
    (tmp_path / "pip.py").write_text("import sys; print('INSTALLING', sys.argv)")
    # A Python that hasn't got the package, wherever this one has it from.
    before = "import os, sys; sys.path[:] = ['', *(p for p in sys.path if not os.path.exists(p + '/vit/__init__.py'))]\n"
    before += "sys.meta_path[:] = [m for m in sys.meta_path if 'editable' not in str(m)]\n"
    environment = {**os.environ, "VIT_REPOSITORY": str(tmp_path / "vit"), "PYTHONPATH": str(tmp_path)}
    call = [sys.executable, "-c", before + code.partition("def run(")[0]]
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "INSTALLING" in done.stdout, done
