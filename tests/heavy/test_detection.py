"""Detection as a user runs it: digits that are learned, a recipe on drawn images in VOC's form, an evaluation, a prediction."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.conftest import REPO, quickly_compiled, run
from vit import cli
from vit.config import NOBODY, ScenesData
from vit.data.scenes import Scenes

PICTURES = ["train_batch.png", "labels.png", "val_boxes.png", "worst_boxes.png", "precision_recall.png", "confusion.png"]


def judged(truth, results):
    """pycocotools' twelve figures."""
    known = COCO()
    known.dataset = truth
    known.createIndex()
    judge = COCOeval(known, known.loadRes(results), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return judge.stats


def test_digits_are_learned(tmp_path):
    """A tenth of the recipe's updates; the whole recipe's figures are in the README."""
    run(
        "train.py", "--config", REPO / "configs" / "detect_digits.py", "--data.scenes", 1200, "--steps", 300,
        "--eval-every", 150, "--save-every", 150, "--schedule.warmup", 20, "--workdir", tmp_path, timeout=600,
    )  # fmt: skip
    figures = json.loads((tmp_path / "eval.json").read_text())
    assert figures["ap50"] > 0.1
    assert figures["examples"] == 500
    assert all((tmp_path / name).stat().st_size > 1000 for name in PICTURES)

    # pycocotools' figures of the files that were written, whose truth is that of the scenes
    written = json.loads((tmp_path / "truth.json").read_text())
    source, boxes = Scenes(ScenesData(scenes=1, truth="boxes"), "test"), []
    for i in range(len(source)):
        real = source[i]["label"] != NOBODY
        boxes += [[i, k + 1, *box] for k, box in zip(source[i]["label"][real], source[i]["boxes"][real] * 96, strict=True)]
    told = [[x["image_id"], x["category_id"], *x["bbox"]] for x in written["annotations"]]
    boxes, told = np.array(boxes), np.array(told)
    np.testing.assert_allclose(told[:, [0, 1, 3, 2]], boxes[:, :4], atol=1e-4)
    np.testing.assert_allclose((told[:, 2:4] + told[:, 4:])[:, ::-1], boxes[:, 4:], atol=1e-4)
    stats = judged(written, json.loads((tmp_path / "predictions.json").read_text()))
    for name, value in zip(("ap", "ap50", "ap75"), stats, strict=False):
        assert figures[name] == pytest.approx(value, abs=1e-6)


def cells(folder):
    """Images with bright and dark squares, in Pascal VOC's form."""
    rng = np.random.default_rng(0)
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for split, count in (("train", 8), ("val", 3), ("test", 3)):
        names = []
        for i in range(count):
            pixels, objects = np.full((60, 80, 3), 128, np.uint8), ""
            for kind, value in (("bright", 255), ("dark", 0))[: rng.integers(1, 3)]:
                y, x = rng.integers(0, 30), rng.integers(0, 50)
                pixels[y : y + 20, x : x + 24] = value
                corners = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + 24}</xmax><ymax>{y + 20}</ymax>"
                objects += f"<object><name>{kind}</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>"
            name = f"{split}{i}"
            names.append(name)
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, "jpeg", quality=95)
            (folder / "JPEGImages" / f"{name}.jpg").write_bytes(out.getvalue())
            size = "<size><width>80</width><height>60</height><depth>3</depth></size>"
            text = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
            (folder / "Annotations" / f"{name}.xml").write_text(text)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return folder


def test_first_steps_of_a_recipe_and_a_prediction(tmp_path, capsys):
    data = cells(tmp_path / "data")
    run(
        "train.py", "--config", REPO / "configs" / "detect_bccd_cpu.py", "--data.dir", data, "--data.size", 48, 64,
        "--data.mosaic", 0.5, "--steps", 4, "--batch-size", 4, "--model.depth", 2, "--schedule.warmup", 1,
        "--workdir", tmp_path / "run", timeout=400, env=quickly_compiled(),
    )  # fmt: skip
    figures = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert figures["examples"] == 3
    assert figures["ap_per_class"].keys() == {"bright", "dark"}
    assert 0 <= figures["threshold"] <= 1
    flags = ["--workdir", tmp_path / "run", data / "JPEGImages", "--out", tmp_path / "out", "--save-images"]
    cli.run(["predict", *map(str, flags)])
    assert len(capsys.readouterr().out.splitlines()) >= 14
    with (tmp_path / "out" / "predictions.csv").open() as file:
        assert next(csv.reader(file))
