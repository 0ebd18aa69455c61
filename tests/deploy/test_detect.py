"""A trained detector from Python and from `vit predict`."""

import csv
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import vit
from tests.deploy.test_predict import Never
from tests.deploy.tiny import MODEL, tiny_run
from vit import cli
from vit.config import BoxData, Config, DenseHead, DetectionConfig, ScenesData
from vit.data.decode import BadImage
from vit.deploy.detect import BoxPrediction, BoxPredictor
from vit.errors import UserError
from vit.tasks.boxscores import UNCHOSEN
from vit.training.evaluate import evaluate_split, open_run

SMALL = replace(MODEL, patch=8)
TASK = DetectionConfig(head=DenseHead(width=8, strides=(8, 16), convs=1), found=15)
SIZES = [(40, 56), (7, 301), (1, 1), (24, 32), (100, 30), (33, 64), (200, 120)]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    config = Config(batch_size=16, data=ScenesData(scenes=32, truth="boxes"), task=TASK, model=SMALL)
    return tiny_run(tmp_path_factory.mktemp("scenes") / "run", config)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of many sizes with a COCO JSON for each split."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    (root / "annotations").mkdir()
    for split, count in (("train", 3), ("val", 9)):
        (root / split).mkdir()
        whole = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]}
        for i in range(count):
            H, W = SIZES[i % len(SIZES)]
            coarse = rng.integers(0, 256, (-(-H // 8), -(-W // 8), 3), np.uint8)
            Image.fromarray(coarse).resize((W, H), Image.Resampling.BICUBIC).save(root / split / f"{i:03d}.png")
            whole["images"].append({"id": i, "file_name": f"{i:03d}.png", "height": H, "width": W})
            box = {"bbox": [0, 0, W / 2, H / 2], "area": W * H / 4, "iscrowd": 0}
            whole["annotations"].append({"id": i, "image_id": i, "category_id": 3, **box})
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(whole))
    return root


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    data = BoxData(dir=str(photos), size=(24, 32))
    return tiny_run(tmp_path_factory.mktemp("padded") / "run", Config(batch_size=8, data=data, task=TASK, model=SMALL))


@pytest.fixture(scope="module")
def predictor(run):
    return vit.load(run)


def same(result, found, threshold):
    """A prediction is what an evaluation has found."""
    good = found["scores"] >= threshold
    np.testing.assert_allclose(result.boxes, found["boxes"][good], atol=1e-4 * max(1, *result.size))
    np.testing.assert_allclose(result.scores, found["scores"][good], atol=1e-5)
    np.testing.assert_array_equal(result.kinds, found["kinds"][good])


def test_files_have_the_boxes_of_an_evaluation(run, predictor, photos):
    assert isinstance(predictor, BoxPredictor)
    assert predictor.threshold == UNCHOSEN
    _, examples, _ = evaluate_split(open_run(run, "last"), "val", Never())
    results = predictor.predict(sorted((photos / "val").iterdir()))
    assert [r.size for r in results] == [SIZES[i % len(SIZES)] for i in range(9)]
    for result, found in zip(results, examples["found"], strict=True):
        same(result, found, UNCHOSEN)
        (H, W), (y0, x0, y1, x1) = result.size, result.boxes.T
        assert ((y0 >= 0) & (x0 >= 0) & (y1 <= H) & (x1 <= W) & (y0 <= y1) & (x0 <= x1)).all()
        assert (np.diff(result.scores) <= 0).all()
    assert 0 < sum(len(r.kinds) for r in results) < sum(len(f["kinds"]) for f in examples["found"])


def test_scenes_have_the_boxes_of_an_evaluation(scenes):
    _, examples, source = evaluate_split(open_run(scenes, "last"), "val", Never())
    results = vit.load(scenes).predict(source[i]["image"] for i in range(20))
    for result, found in zip(results, examples["found"], strict=False):
        same(result, found, UNCHOSEN)
    assert {r.size for r in results} == {(96, 96)}


def test_the_threshold_is_that_of_the_last_validation(run):
    trained = open_run(run, "last")
    meta = {**trained.meta, "scores": {"0": [0.3, 0.4, 0.9], "2": [0.3, 0.4, 0.55], "7": [0.3, 0.4, 0.1]}}
    predictor = BoxPredictor(trained._replace(meta=meta))
    assert predictor.threshold == 0.55
    (result,) = predictor.predict(np.zeros((40, 50), np.uint8))
    assert (result.scores >= 0.55).all()
    predictor.threshold = 0
    (everything,) = predictor.predict(np.zeros((40, 50), np.uint8))
    assert (everything.scores > 0).all()
    assert len(everything.kinds) >= len(result.kinds)


def test_a_result_says_what_is_where():
    boxes = np.array([[1.0, 2, 20, 30], [5, 5, 9, 9], [30, 40, 39, 49]])
    result = BoxPrediction(boxes, np.array([0.9, 0.8, 0.5]), np.array([1, 0, 1]), ["cat", "dog", "ox"], (40, 50))
    assert result.counts() == {"dog": 2, "cat": 1}
    assert repr(result) == "BoxPrediction(40 x 50: 2 dog, 1 cat)"
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    picture = result.draw(image)
    assert picture.shape == image.shape
    assert (picture != image).any(axis=-1)[30, 45]
    np.testing.assert_array_equal(picture[32:, :39], image[32:, :39])  # below all others, and left of the last
    nothing = BoxPrediction(boxes[:0], np.zeros(0), np.zeros(0, int), ["cat"], (40, 50))
    assert repr(nothing) == "BoxPrediction(40 x 50: nothing)"
    np.testing.assert_array_equal(nothing.draw(Image.fromarray(image)), image)
    with pytest.raises(UserError, match="image and boxes have 50 x 39 pixels and 50 x 40 pixels"):
        result.draw(image[1:])


def test_images_of_any_size_and_colour(predictor):
    rng = np.random.default_rng(0)
    shapes = [(1, 1, 3), (7, 301), (301, 7, 1), (24, 32, 4), (23, 33, 3), (130, 70, 3)]
    results = predictor.predict([rng.integers(0, 256, shape, np.uint8) for shape in shapes])
    assert [r.size for r in results] == [shape[:2] for shape in shapes]
    assert predictor.view(np.zeros((40, 50), np.uint8)).shape == (24, 32, 3)
    assert predictor.predict([]) == []


def test_a_stream_keeps_order_compiles_little_and_reads_little_ahead(run):
    predictor, asked, rng = vit.load(run), 0, np.random.default_rng(0)
    images = [rng.integers(0, 256, (10 + i, 60 - i, 3), np.uint8) for i in range(50)]

    def endless():
        nonlocal asked
        for i in itertools.count():
            asked += 1
            yield b"no image" if i % 7 == 3 else images[i % 50]

    for i, (image, result) in enumerate(itertools.islice(predictor.stream(endless()), 60)):
        assert asked <= i + 4 * predictor.batch_size() + 9
        if i % 7 == 3:
            assert isinstance(result, BadImage)
        else:
            assert image is images[i % 50]
            assert result.size == image.shape[:2]
    assert predictor._outputs._cache_size() == 1
    results = list(predictor.stream([b"no image"] * 40))
    assert len(results) == 40
    assert all(isinstance(result, BadImage) for _, result in results)


def test_a_bad_file_is_told_with_its_name(predictor, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match="this image can't be read") as caught:
        predictor.predict(tmp_path / "broken.png")
    assert caught.value.where == str(tmp_path / "broken.png")


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


def test_a_folder_with_a_bad_file(run, predictor, photos, tmp_path, capsys):
    files = sorted((photos / "val").iterdir())[:5]
    folder = tmp_path / "in"
    folder.mkdir()
    for path in files:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "001a.jpg").write_bytes(b"\xff\xd8 no more")
    with pytest.raises(UserError, match="1 of 6 files couldn't be read"):
        predict(capsys, "--workdir", run, folder, "--out", tmp_path, "--save-images")
    printed, err = capsys.readouterr()
    expected, (rows, objects) = predictor.predict(files), table(tmp_path)
    assert list(rows[0]) == ["path", "height", "width", "label", "score", "x0", "y0", "x1", "y1", "error"]
    assert [told["path"] for told in objects] == sorted(map(str, folder.iterdir()))
    bad = objects.pop(2)
    assert [row["error"] for row in rows if row["path"] == bad["path"]] == [bad["error"]]
    coco = COCO(tmp_path / "predictions.json")
    capsys.readouterr()
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == predictor.class_names
    assert coco.getImgIds() == [1, 2, 4, 5, 6]
    for number, path, told, line, result in zip(coco.getImgIds(), files, objects, printed.splitlines(), expected, strict=True):
        name = str(folder / path.name)
        counts = [f"{count} {kind}" for kind, count in result.counts().items()]
        assert line.split("\t") == [name, *(counts or ["nothing"])]
        own = [row for row in rows if row["path"] == name]
        assert len(own) == max(1, len(result.kinds))
        assert all((int(row["height"]), int(row["width"])) == result.size for row in [*own, told])
        assert [x["label"] for x in told["boxes"]] == [result.class_names[k] for k in result.kinds]
        corners = np.array([x["box"] for x in told["boxes"]]).reshape(-1, 4)
        np.testing.assert_allclose(corners, result.boxes[:, [1, 0, 3, 2]], atol=0.01)
        np.testing.assert_allclose([x["score"] for x in told["boxes"]], result.scores, atol=1e-6)
        if told["boxes"]:
            values = [[float(row[n]) for n in ("x0", "y0", "x1", "y1", "score")] for row in own]
            np.testing.assert_allclose(values, [[*x["box"], x["score"]] for x in told["boxes"]])
            assert [row["label"] for row in own] == [x["label"] for x in told["boxes"]]
        else:
            assert own[0]["label"] == ""
        (record,) = coco.loadImgs([number])
        assert (record["file_name"], record["height"], record["width"]) == (name, *result.size)
        found = coco.loadAnns(coco.getAnnIds([number]))
        assert [coco.loadCats([x["category_id"]])[0]["name"] for x in found] == [x["label"] for x in told["boxes"]]
        wanted = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in corners]
        np.testing.assert_allclose(
            np.array([x["bbox"] for x in found]).reshape(-1, 4), np.array(wanted).reshape(-1, 4), atol=1e-6
        )
        with Image.open(tmp_path / "predictions" / "boxes" / f"{number:06d}-{path.stem}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), result.draw(path))
    assert err.splitlines()[-1].endswith(
        f"predictions.jsonl, {tmp_path / 'predictions.json'}, {tmp_path / 'predictions' / 'boxes'}"
    )


def test_results_of_ones_own_are_replaced_and_others_kept(run, photos, tmp_path, capsys):
    flags = ["--workdir", run, photos / "val" / "003.png", "--out", tmp_path]
    for _ in range(2):
        predict(capsys, *flags)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["predictions.csv", "predictions.json", "predictions.jsonl"]
    (tmp_path / "predictions.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match=r"there is another predictions\.json"):
        predict(capsys, *flags)
    assert (tmp_path / "predictions.json").read_text() == '{"mine": 1}'


def test_a_threshold_of_ones_own(run, predictor, photos, tmp_path, capsys):
    counts = []
    for flags, least in ((("--threshold", 0.001), 0.001), ((), predictor.threshold), (("--threshold=0.9",), 0.9)):
        predict(capsys, "--workdir", run, photos / "val" / "003.png", "--out", tmp_path, *flags)
        (told,) = table(tmp_path)[1]
        assert all(box["score"] >= least - 1e-6 for box in told["boxes"])
        counts.append(len(told["boxes"]))
    assert counts[0] > counts[1] > counts[2]


def test_attention_is_of_classification(run, tmp_path, capsys):
    Image.new("RGB", (20, 30)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="a detection run has no --attention or --block"):
        predict(capsys, "--workdir", run, tmp_path / "a.png", "--out", tmp_path / "out", "--attention")
    assert not (tmp_path / "out").exists()
