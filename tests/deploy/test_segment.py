"""A trained segmentation model from Python and from `vit predict`."""

import csv
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import vit
from tests.deploy.test_predict import Never
from tests.deploy.tiny import MODEL, tiny_run
from vit import cli
from vit.config import Config, ConvHead, EomtHead, MaskData, ScenesData, SegmentationConfig
from vit.data.decode import BadImage
from vit.data.scenes import Scenes
from vit.deploy import predict as predict_module
from vit.deploy.segment import MaskPrediction, MaskPredictor, rounded
from vit.errors import UserError
from vit.report.masks import palette
from vit.report.segmentation import decoded
from vit.training.evaluate import evaluate_split, open_run

VIEWS = ["whole", "padded", "sliding"]
SMALL = replace(MODEL, patch=8)
TASK = SegmentationConfig(head=ConvHead(width=8, levels=2, stride=4))
SIZES = [(40, 56), (7, 301), (1, 1), (24, 32), (100, 30), (33, 64), (25, 90), (64, 64), (200, 120), (16, 16)]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("scenes") / "run", Config(batch_size=16, data=ScenesData(), task=TASK, model=SMALL))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of many sizes, with masks."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 13)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            H, W = SIZES[i % len(SIZES)]
            coarse = rng.integers(0, 256, (-(-H // 8), -(-W // 8), 3), np.uint8)
            Image.fromarray(coarse).resize((W, H), Image.Resampling.BICUBIC).save(root / "images" / split / f"{i:03d}.png")
            ids = np.arange(H * W, dtype=np.uint8).reshape(H, W) % 4
            Image.fromarray(ids).save(root / "masks" / split / f"{i:03d}.png")
    return root


@pytest.fixture(scope="module")
def runs(photos, tmp_path_factory):
    """A run on these images for each view."""

    def run(view):
        data = MaskData(dir=str(photos), size=(24, 32), view=view, names=("sky", "road", "car", "tree"))
        return tiny_run(tmp_path_factory.mktemp(view) / "run", Config(batch_size=8, data=data, task=TASK, model=SMALL))

    return {view: run(view) for view in VIEWS}


@pytest.fixture(scope="module")
def predictors(runs):
    """These runs' models, loaded once: so their programs are compiled once."""
    return {view: vit.load(run) for view, run in runs.items()}


@pytest.fixture(scope="module")
def predictor(scenes):
    return vit.load(scenes)


def of_evaluation(run, split):
    """The masks of eval.py's own code."""
    _, examples, _ = evaluate_split(open_run(run, "last"), split, Never())
    return [decoded(png) for png in examples["predicted"]]


@pytest.mark.parametrize("view", VIEWS)
def test_files_have_the_masks_of_an_evaluation(runs, predictors, photos, view):
    predictor = predictors[view]
    assert isinstance(predictor, MaskPredictor)
    results, expected = predictor.predict(sorted((photos / "images" / "val").iterdir())), of_evaluation(runs[view], "val")
    assert [r.mask.shape for r in results] == [SIZES[i % len(SIZES)] for i in range(13)]
    for result, mask in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.mask, mask)
    assert len(np.unique(np.concatenate([r.mask.ravel() for r in results]))) == 4


def test_scenes_have_the_masks_of_an_evaluation(scenes, predictor):
    source, expected = Scenes(ScenesData(), "val"), of_evaluation(scenes, "val")
    results = predictor.predict(source[i]["image"] for i in range(40))
    for result, mask in zip(results, expected, strict=False):
        np.testing.assert_array_equal(result.mask, mask)


@pytest.mark.parametrize("view", ["padded", "sliding"])
def test_eomt_has_the_masks_of_an_evaluation(photos, tmp_path, view):
    data = MaskData(dir=str(photos), size=(24, 32), view=view, names=("sky", "road", "car", "tree"))
    task = SegmentationConfig(head=EomtHead(queries=6, blocks=1, upscale=1))
    run = tiny_run(tmp_path / "run", Config(batch_size=8, data=data, task=task, model=SMALL))
    results = vit.load(run).predict(sorted((photos / "images" / "val").iterdir()))
    for result, mask in zip(results, of_evaluation(run, "val"), strict=True):
        np.testing.assert_array_equal(result.mask, mask)


def test_a_result_says_what_is_where(predictor):
    image = Scenes(ScenesData(), "val")[0]["image"]
    (result,) = predictor.predict(image)
    assert result.areas.sum() == pytest.approx(1)
    np.testing.assert_allclose(result.areas, [np.mean(result.mask == k) for k in range(11)])
    top = result.top(4)
    assert [share for _, share in top] == sorted(result.areas, reverse=True)[:4]
    assert repr(result) == "MaskPrediction(96 x 96: " + ", ".join(f"{name} {share:.1%}" for name, share in top[:3]) + ")"
    np.testing.assert_array_equal(result.colours(), palette(result.class_names)[result.mask])
    assert result.overlay(image).shape == (96, 96, 3)
    with pytest.raises(UserError, match="image and mask have 96 x 95 pixels and 96 x 96 pixels"):
        result.overlay(image[1:])


def test_only_classes_that_are_there_are_named():
    result = MaskPrediction(np.array([[1, 1, 2]], np.uint8), ["a", "b", "c", "d"])
    assert result.top() == [("b", pytest.approx(2 / 3)), ("c", pytest.approx(1 / 3))]


def test_a_large_overlay_is_made_in_bands(monkeypatch):
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (50, 30, 3), np.uint8), rng.integers(0, 3, (50, 30), np.uint8)
    whole = MaskPrediction(mask, ["a", "b", "c"])
    monkeypatch.setattr("vit.deploy.segment.BAND", 200)
    parts = MaskPrediction(mask, ["a", "b", "c"])
    np.testing.assert_array_equal(parts.areas, whole.areas)
    np.testing.assert_array_equal(parts.overlay(image), whole.overlay(image))


@pytest.mark.parametrize("view", VIEWS)
def test_images_of_any_size_and_colour(predictors, view):
    predictor, rng = predictors[view], np.random.default_rng(0)
    shapes = [(1, 1, 3), (7, 301), (301, 7, 1), (24, 32, 4), (23, 33, 3), (130, 70, 3)]
    results = predictor.predict([rng.integers(0, 256, shape, np.uint8) for shape in shapes])
    assert [r.mask.shape for r in results] == [shape[:2] for shape in shapes]
    assert all(r.mask.dtype == np.uint8 and r.mask.max() < 4 for r in results)
    grey = rng.integers(0, 256, (40, 50), np.uint8)
    for same in (
        grey[..., None],
        Image.fromarray(grey),
        np.repeat(grey[..., None], 3, axis=2),
        Image.fromarray(grey).convert("RGBA"),
    ):
        np.testing.assert_array_equal(predictor.predict(same)[0].mask, predictor.predict(grey)[0].mask)
    assert predictor.view(grey).shape == ((40, 50, 3) if view == "sliding" else (24, 32, 3))
    assert predictor.predict([]) == []


def test_a_bad_file_is_told_with_its_name(predictor, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match="this image can't be read") as caught:
        predictor.predict(tmp_path / "broken.png")
    assert caught.value.where == str(tmp_path / "broken.png")


@pytest.mark.parametrize("view", VIEWS)
def test_a_stream_keeps_order_compiles_little_and_reads_little_ahead(runs, view):
    predictor, asked, rng = vit.load(runs[view]), 0, np.random.default_rng(0)
    images = [rng.integers(0, 256, (10 + i, 60 - i, 3), np.uint8) for i in range(50)]

    def endless():
        nonlocal asked
        for i in itertools.count():
            asked += 1
            yield b"no image" if i % 7 == 3 else images[i % 50]

    ahead = 4 * predictor._mesh.size + 3 if view == "sliding" else 4 * predictor.batch_size() + 9
    for i, (image, result) in enumerate(itertools.islice(predictor.stream(endless()), 120)):
        assert asked <= i + ahead
        if i % 7 == 3:
            assert isinstance(result, BadImage)
        else:
            assert image is images[i % 50]
            assert result.mask.shape == image.shape[:2]
    assert len(predictor._canvases) <= 3
    assert predictor._logits._cache_size() == (0 if view == "sliding" else 1)
    results = list(predictor.stream([b"no image"] * 100))
    assert len(results) == 100
    assert all(isinstance(result, BadImage) for _, result in results)


def test_what_doesnt_fit_goes_in_smaller_batches(predictor, monkeypatch):
    assert predictor.batch_size() == 16
    monkeypatch.setattr(predict_module, "ROOM", 1.0)
    assert predictor.batch_size() == predictor._mesh.size
    assert len(predictor.predict([np.zeros((8, 8), np.uint8)] * 20)) == 20


def test_canvases_waste_little(scenes):
    assert [rounded(n) for n in (1, 32, 33, 128, 129, 1024, 1025, 1500)] == [32, 32, 64, 128, 160, 1024, 1280, 1536]
    predictor = vit.load(scenes)
    sizes = [(512, 1024), (1024, 2048), (700, 1000), (1000, 1000), (1, 1), (640, 480), (480, 640), (500, 500)]
    found = [predictor._canvas(size) for size in sizes]
    for (h, w), (H, W) in zip(sizes, found, strict=True):
        assert h <= H
        assert w <= W
        assert H * W / (rounded(h) * rounded(w)) <= 1.5
    assert found[2] == (768, 1024)
    assert len(set(found)) < len(found)


# ---- vit predict ----


def predict(capsys, *args):
    """What it printed."""
    capsys.readouterr()
    cli.run(["predict", *map(str, args)])
    return capsys.readouterr()


def table(folder):
    """predictions.csv and predictions.jsonl."""
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file)), [json.loads(line) for line in lines]


def test_a_folder_with_a_bad_file(runs, predictors, photos, tmp_path, capsys):
    files = sorted((photos / "images" / "val").iterdir())[:5]
    folder = tmp_path / "in"
    folder.mkdir()
    for path in files:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "001a.jpg").write_bytes(b"\xff\xd8 no more")
    with pytest.raises(UserError, match="1 of 6 files couldn't be read"):
        predict(capsys, "--workdir", runs["sliding"], folder, "--out", tmp_path, "--save-images")
    printed, err = capsys.readouterr()
    expected = predictors["sliding"].predict(files)
    rows, objects = table(tmp_path)
    made = tmp_path / "predictions"
    assert list(rows[0]) == ["path", "height", "width", "mask", "area_sky", "area_road", "area_car", "area_tree", "error"]
    assert [row["path"] for row in rows] == [row["path"] for row in objects] == sorted(map(str, folder.iterdir()))
    assert rows.pop(2)["error"] == objects.pop(2)["error"] != ""
    numbers = [1, 2, 4, 5, 6]
    colours = palette(["sky", "road", "car", "tree"])
    for number, path, row, told, line, result in zip(
        numbers, files, rows, objects, printed.splitlines(), expected, strict=True
    ):
        name = f"{number:06d}-{path.stem}.png"
        assert row["mask"] == told["mask"] == f"predictions/masks/{name}"
        assert (int(row["height"]), int(row["width"])) == (told["height"], told["width"]) == result.mask.shape
        shares = [float(row[f"area_{k}"]) for k in result.class_names]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(shares, result.areas, atol=1e-6)
        assert told["areas"] == dict(result.top(4))
        assert line.split("\t") == [str(folder / path.name), *(f"{name} {share:.1%}" for name, share in result.top(3))]
        with Image.open(tmp_path / row["mask"]) as mask:
            assert mask.mode == "P"
            np.testing.assert_array_equal(np.asarray(mask), result.mask)
            np.testing.assert_array_equal(np.asarray(mask.convert("RGB")), colours[result.mask])
        with Image.open(made / "overlays" / name) as overlay:
            np.testing.assert_array_equal(np.asarray(overlay), result.overlay(path))
    assert len(list((made / "masks").iterdir())) == len(list((made / "overlays").iterdir())) == 5
    assert (made / "classes.txt").read_text() == "sky\nroad\ncar\ntree\n"
    assert (made / "legend.png").stat().st_size > 1000
    assert err.splitlines()[-1].endswith(f"predictions.jsonl, {made / 'masks'}")


def test_results_of_ones_own_are_replaced_and_others_kept(scenes, runs, photos, tmp_path, capsys):
    (one,) = (photos / "images" / "val").glob("003.png")
    flags = ["--workdir", scenes, one, "--out", tmp_path]
    predict(capsys, *flags)
    predict(capsys, *flags)
    mask = tmp_path / "predictions" / "masks" / "000001-003.png"
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        "000001-003.png", "classes.txt", "legend.png", "predictions.csv", "predictions.jsonl"
    ]  # fmt: skip
    with pytest.raises(UserError, match="masks of other classes"):
        predict(capsys, "--workdir", runs["whole"], one, "--out", tmp_path)
    assert len(table(tmp_path)[0]) == 1
    Image.new("L", (3, 3)).save(mask)
    before = mask.read_bytes()
    with pytest.raises(UserError, match=r"there is another 000001-003\.png"):
        predict(capsys, *flags)
    assert mask.read_bytes() == before
    (tmp_path / "predictions.csv").write_text("my own")
    with pytest.raises(UserError, match=r"there is another predictions\.csv"):
        predict(capsys, *flags)


def test_the_masks_are_not_taken_for_images(scenes, tmp_path, capsys):
    for i in range(3):
        Image.new("RGB", (20, 30), (50 * i, 0, 0)).save(tmp_path / f"{i}.png")
    for _ in range(2):
        predict(capsys, "--workdir", scenes, tmp_path, "--out", tmp_path, "--save-images")
        assert len(table(tmp_path)[0]) == 3


@pytest.mark.parametrize("flags", [["--attention"], ["--block", "0"], ["--attention", "--block=1"]])
def test_attention_is_of_classification(scenes, tmp_path, capsys, flags):
    Image.new("RGB", (20, 30)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="a segmentation run has no --attention or --block") as caught:
        predict(capsys, "--workdir", scenes, tmp_path / "a.png", "--out", tmp_path / "out", *flags)
    assert len(str(caught.value).splitlines()) == 3
    assert not (tmp_path / "out").exists()
