"""Fine-tuning as a user starts it: from a run of the digits to another, killed, resumed, with the weights gone."""

import json
import shutil
import signal

import numpy as np
import pytest

from tests.conftest import REPO, run, start
from tests.test_programs import assert_same_state, final_state, wait_for
from vit.training.evaluate import open_run
from vit.weights import load

FINE = ["--steps=6", "--batch-size=16", "--eval-every=3", "--save-every=2", "--log-every=2", "--schedule.warmup=1"]


@pytest.fixture
def base(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "base")
    return tmp_path / "base"


def test_weights_of_a_run_are_what_is_evaluated(trained):
    weights, model = load(str(trained)), open_run(trained, "last")
    assert weights.config == model.config.model
    assert (weights.image_size, weights.channels, weights.classes) == ((8, 8), 1, 10)
    assert (weights.mean, weights.std, weights.class_names) == ((0.305,), (0.376,), list("0123456789"))
    assert all(np.array_equal(x, model.params[path]) for path, x in weights.params.items())


def test_lora_killed_and_resumed_without_its_weights_ends_bitwise_the_same(base, tmp_path):
    lora = [*FINE, "--weights", base, "--lora.rank=2", "--optim.layer-decay=0.8", "--model.dropout=0.1"]
    out, _ = run("train.py", *lora, "--workdir", tmp_path / "whole")
    assert f"weights: {base}, step 12: width 16, 2 blocks, patch 2, 1 channels, 8 x 8" in out
    assert "the head is kept: the same 10 classes" in out
    assert "parameters (" in out
    assert "of them trained)" in out
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert (config["model"]["width"], config["model"]["dropout"], config["auto"]) == (16, 0.1, [])

    process = start("train.py", *lora, "--workdir", tmp_path / "killed")
    wait_for(tmp_path / "killed" / "checkpoints" / "2", process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    shutil.rmtree(base)
    out, _ = run("train.py", *lora, "--workdir", tmp_path / "killed")
    assert "resuming" in out
    assert_same_state(final_state(tmp_path / "killed"), final_state(tmp_path / "whole"))

    params = open_run(tmp_path / "whole", "last").params  # a plain ViT
    assert not any("lora" in path for path in params)
    assert load(str(tmp_path / "whole")).params.keys() == params.keys()


def test_a_probe_with_chosen_settings_and_what_a_resume_keeps_of_them(base, tmp_path):
    path = tmp_path / "probe.py"
    path.write_text(
        "from dataclasses import replace\nfrom vit.config import DigitsData\nfrom vit.flags import load_config\n"
        f"from pathlib import Path\ndef get_config():\n    config = load_config(Path({str(REPO / 'configs' / 'probe.py')!r}))\n"
        "    return replace(config, data=DigitsData(), auto=tuple(x for x in config.auto if x != 'data.size'))\n"
    )
    probe = ["--config", path, "--weights", base, "--workdir", tmp_path / "probe", "--steps=5"]
    out, _ = run("train.py", *probe)
    assert "chosen: --optim.lr 0.0005 (0.002 at a batch of 256, for a head or LoRA's factors, which start at zero)" in out
    assert "(170 of them trained)" in out
    before, after = load(str(base)).params, open_run(tmp_path / "probe", "last").params
    moved = {p for p, x in after.items() if not np.array_equal(x, before[p])}
    assert moved == {"head/kernel", "head/bias"}
    _, err = run("train.py", *probe, "--optim.lr=1", code=2)
    assert "--optim.lr was 0.0005 when this run began and is 1.0 now" in err
    shutil.rmtree(base)
    out, _ = run("train.py", *probe, "--steps=7")
    assert "from step 5" in out
    assert "chosen:" not in out


def test_a_mistake_is_refused_before_a_file_is_written(trained, tmp_path):
    given = ["--weights", trained, "--freeze", "block/*", "--workdir", tmp_path / "run"]
    _, err = run("train.py", *FINE, *given, code=2)
    assert err.splitlines()[0] == "error: --freeze 'block/*' matches no parameter"
    assert not (tmp_path / "run").exists()
