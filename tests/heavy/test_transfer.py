"""benchmarks/transfer.py in small: from a run of the digits to a folder of made-up pictures."""

import json

import numpy as np
from PIL import Image

from tests.conftest import run


def test_transfer(trained, tmp_path):
    rng = np.random.default_rng(0)
    for name, shade in (("dark", 60), ("light", 180)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(60):
            pixels = np.clip(rng.normal(shade, 40, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    command = ["--weights", trained, "--data.dir", tmp_path / "images", "--size", 8, "--steps", 4, "--batch-size", 16]
    out, _ = run("benchmarks/transfer.py", *command, "--seeds", 1, "--out", tmp_path / "runs", timeout=600)
    result = json.loads(out)
    for start in ("pretrained", "scratch"):
        assert result[start]["top1"] == [result[start]["mean"]]
        config = json.loads((tmp_path / "runs" / f"{start}-s1" / "config.json").read_text())
        assert (config["model"]["width"], config["model"]["patch"], config["steps"], config["seed"]) == (16, 2, 4, 1)
    assert json.loads((tmp_path / "runs" / "scratch-s1" / "config.json").read_text())["weights"] == ""
