"""The notebooks, run from top to bottom on a small setting, without Colab and without a download."""

import json
from dataclasses import replace

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPO, quickly_compiled
from tests.data.test_prepare import contents, pack
from vit.data import prepare as prepare_module


def execute(name, folder, patch, **environment):
    """The notebook's outputs as one text, and how many pictures it shows."""
    for variable in ("JAX_PLATFORMS", "XLA_FLAGS"):
        patch.delenv(variable, raising=False)
    settings = {"VIT_SMALL": "1", "VIT_REPOSITORY": str(REPO), "VIT_HOME": str(folder / "home"), "PYTHONPATH": str(REPO)}
    for variable, value in {**quickly_compiled(), **settings, **environment}.items():
        patch.setenv(variable, value)
    notebook = nbformat.read(REPO / "notebooks" / name, as_version=4)
    NotebookClient(notebook, timeout=400, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    return "".join(output.get("text", "") for output in outputs), pictures


@pytest.mark.filterwarnings("default")  # of the notebook's machinery, not ours
def test_cifar10(tmp_path, monkeypatch):
    cifar = prepare_module.CIFARS["cifar10"]
    monkeypatch.setitem(prepare_module.CIFARS, "cifar10", replace(cifar, records=dict.fromkeys(cifar.records, 20)))
    prepare_module.prepare("cifar10", tmp_path / "sets", pack(tmp_path / "a.tar.gz", "cifar10", contents("cifar10")))
    text, pictures = execute("cifar10_tpu.ipynb", tmp_path, monkeypatch, VIT_DATA=str(tmp_path / "sets"))
    assert "resuming" in text
    assert "flower.jpg" in text
    assert pictures == 7
    assert json.loads((tmp_path / "home" / "cifar10" / "eval.json").read_text())["examples"] == 20


@pytest.mark.filterwarnings("default")
def test_finetune(tmp_path, monkeypatch):
    text, pictures = execute("finetune.ipynb", tmp_path, monkeypatch)
    assert "resuming" in text
    assert "digit 7" in text
    assert pictures == 2 + 5 + 6
    figures = json.loads((tmp_path / "home" / "my-images" / "eval.json").read_text())
    assert len(figures["per_class_accuracy"]) == 10
    assert len((tmp_path / "home" / "my-images" / "predicted" / "predictions.csv").read_text().splitlines()) == 4
