"""The default run in full: what `uv run train.py` promises."""

import json

import pytest

from tests.conftest import run


@pytest.mark.parametrize("seed", [0])  # the README's three seeds were run by hand: a minute and a half each
def test_digits_reach_98_percent(tmp_path, seed):
    run("train.py", "--seed", seed, "--workdir", tmp_path / "run", timeout=900)
    figures = json.loads((tmp_path / "run" / "eval.json").read_text())
    print(f"seed {seed}: {figures['top1']:.2%} of {figures['examples']}")
    assert (figures["split"], figures["examples"]) == ("test", 360)
    assert figures["top1"] >= 0.98
