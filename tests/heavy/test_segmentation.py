"""Segmentation as a user runs it: digits that are learned, recipes on made-up street scenes, a stop and a resume, a page."""

import io
import json
import signal

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import jaccard_score

from tests.conftest import REPO, quickly_compiled, run, start
from vit.config import ScenesData
from vit.data.scenes import Scenes

PICTURES = ["train_batch.png", "labels.png", "val_masks.png", "worst_masks.png", "confusion.png", "curves.png"]


def test_digits_are_learned(tmp_path):
    """A tenth of the recipe's updates; the whole recipe's figures are in the README."""
    out, _ = run(
        "train.py", "--config", REPO / "configs" / "segment_digits.py", "--data.scenes", 1200, "--steps", 250,
        "--eval-every", 125, "--save-every", 125, "--schedule.warmup", 20, "--workdir", tmp_path, timeout=600,
    )  # fmt: skip
    figures = json.loads((tmp_path / "eval.json").read_text())
    assert "validation miou" in out
    assert figures["miou"] > 0.1  # background alone is 0.08
    assert figures["iou_per_class"]["background"] > 0.95
    assert all((tmp_path / name).stat().st_size > 1000 for name in PICTURES)
    page = (tmp_path / "report.html").read_text()
    assert "IoU" in page
    assert "boundary F-score" in page

    # scikit-learn's figure of the masks that were written
    source = Scenes(ScenesData(scenes=1), "test")
    with np.load(tmp_path / "predictions.npz") as saved:
        predicted = np.stack([saved[f"predicted_{i}"] for i in range(len(source))])
    truth = np.stack([source[i]["label"] for i in range(len(source))])
    assert figures["miou"] == pytest.approx(jaccard_score(truth.ravel(), predicted.ravel(), average="macro"), abs=1e-9)


def streets(folder, sizes=((60, 80), (48, 100))):
    """Images of coloured blocks with their masks, in SegNet's folders, of several sizes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 3), ("test", 3)):
        for i in range(count):
            height, width = sizes[i % len(sizes)]
            coarse = rng.integers(0, 12, (3, 4)).astype(np.uint8)
            coarse.flat[:12] = rng.permutation(12)
            mask = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
            image = np.stack([mask * 20, 255 - mask * 20, (mask.astype(int) * 53) % 256], axis=-1).astype(np.uint8)
            for name, pixels, kind in ((split, image, "jpeg"), (f"{split}annot", mask, "png")):
                file = folder / name / f"{i:03d}.{'jpg' if kind == 'jpeg' else 'png'}"
                file.parent.mkdir(parents=True, exist_ok=True)
                out = io.BytesIO()
                Image.fromarray(pixels).save(out, kind, **({"quality": 95} if kind == "jpeg" else {}))
                file.write_bytes(out.getvalue())
    return folder


@pytest.mark.parametrize("view", ["padded", "sliding"])  # digits are seen whole
def test_first_steps_on_streets(view, tmp_path):
    """And the figures are of the masks' own pixels, whatever the view."""
    data = streets(tmp_path / "data")
    run(
        "train.py", "--config", REPO / "configs" / "segment_camvid_cpu.py", "--data.dir", data, "--data.size", 48, 64,
        "--data.view", view, "--steps", 4, "--batch-size", 4, "--model.depth", 2, "--schedule.warmup", 1,
        "--workdir", tmp_path / "run", timeout=400, env=quickly_compiled(),
    )  # fmt: skip
    figures = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert figures["examples"] == 3
    masks = {path.stem: np.asarray(Image.open(path)) for path in sorted((data / "testannot").glob("*.png"))}
    assert figures["pixels"] == sum(np.sum(mask != 11) for mask in masks.values())
    with np.load(tmp_path / "run" / "predictions.npz") as saved:
        shapes = [saved[f"predicted_{i}"].shape for i in saved["example_ids"]]
    assert shapes == [mask.shape for mask in masks.values()]


def test_first_steps_of_eomt(tmp_path):
    run(
        "train.py", "--config", REPO / "configs" / "segment_digits_eomt.py", "--data.scenes", 24, "--steps", 3,
        "--batch-size", 4, "--schedule.warmup", 1, "--workdir", tmp_path, timeout=500, env=quickly_compiled(),
    )  # fmt: skip
    figures = json.loads((tmp_path / "eval.json").read_text())
    assert {"miou", "pq", "sq", "rq", "ap", "ap50", "pq_per_class"} <= figures.keys()


def test_a_stopped_run_ends_as_an_undisturbed_one(tmp_path):
    data = streets(tmp_path / "data", ((48, 64),))
    common = (
        "train.py", "--config", REPO / "configs" / "segment_camvid_cpu.py", "--data.dir", data, "--data.size", 32, 48,
        "--steps", 40, "--batch-size", 2, "--model.depth", 1, "--save-every", 10, "--schedule.warmup", 1, "--log-every", 1,
        "--workdir",
    )  # fmt: skip
    run(*common, tmp_path / "whole", timeout=400)
    process = start(*common, tmp_path / "stopped")
    while process.poll() is None and not (tmp_path / "stopped" / "checkpoints" / "10").exists():
        pass
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=200)
    assert process.returncode in (75, 0)
    run(*common, tmp_path / "stopped", timeout=400)
    whole, stopped = (json.loads((tmp_path / name / "eval.json").read_text()) for name in ("whole", "stopped"))
    assert whole == stopped
