"""The `vit` command."""

import pytest

from vit.cli import run
from vit.errors import UserError


def test_a_models_sizes(capsys):
    run(["info", "S/16"])
    assert "S/16 at 224x224: 22,050,664 parameters, 9.20 GFLOPs an image" in capsys.readouterr().out
    run(["info", "B/32", "384"])
    assert "B/32 at 384x384: 88,297,192 parameters" in capsys.readouterr().out


def test_a_runs_checkpoints(trained, capsys):
    run(["info", str(trained)])
    lines = capsys.readouterr().out.splitlines()
    assert "step 12: whole, digits, vit 0.1.0" in lines
    assert lines[-1].startswith("best by validation: step ")


@pytest.mark.parametrize(
    "args", [["inf"], ["info"], ["info", "S16"], ["info", "S/16", "big"], ["info", "S/16", "100"], ["info", "."]]
)
def test_mistakes(args):
    with pytest.raises(UserError):
        run(args)


def test_help(capsys):
    run(["--help"])
    assert capsys.readouterr().out.startswith("usage: vit ")
