"""What the pictures and files of a detection show."""

import json
import types

import numpy as np
import pytest
from matplotlib.image import imread

from tests.report.test_scores import ODD, assert_drawn
from vit.config import NOBODY, AugmentConfig, Config, DetectionConfig, ScenesData
from vit.data.augment import make_prepare
from vit.report import boxes, counts, curves, detection, page, scores
from vit.report.draw import row
from vit.report.masks import palette
from vit.tasks import boxscores

NAMES = ["cat", "dog", "ox"]
RED = np.array(boxes.RED)


def changed(it, size=8, names=NAMES):
    """Where a drawing differs from its image."""
    return (boxes.drawn(it, names, size) != np.broadcast_to(it.image, (*it.image.shape[:2], 3))).any(axis=-1)


def test_a_box_is_drawn_around_its_pixels():
    image = np.full((60, 80, 3), 7, np.uint8)
    it = boxes.drawing(image, np.array([[20.0, 30, 40, 70]]), np.array([1]))
    y, x = np.nonzero(changed(it))
    assert (y.min(), x.min(), y.max() + 1, x.max() + 1) == (20, 30, 40, 70)
    assert not changed(it)[21:39, 31:69].any()  # a line, of one pixel here
    np.testing.assert_array_equal(boxes.drawn(it, NAMES, 8)[20, 50], palette(NAMES)[1])
    assert not np.shares_memory(boxes.drawn(it, NAMES), image)


def test_what_is_odd_is_filled_with_red_and_a_crowd_has_a_thin_line_and_no_words():
    image = np.zeros((60, 80, 3), np.uint8)
    box, kind, yes = np.array([[20.0, 30, 40, 70]]), np.array([1]), np.array([True])
    odd = boxes.drawn(boxes.drawing(image, box, kind, odd=yes), NAMES, 8)
    np.testing.assert_allclose(odd[30, 50], 0.45 * RED, atol=1)
    assert not odd[50].any()
    np.testing.assert_array_equal(
        changed(boxes.drawing(image, box, kind, ["a crowd"], crowd=yes), 40), changed(boxes.drawing(image, box, kind), 8)
    )


def test_words_stand_above_a_box_or_inside_it_and_never_outside_of_the_image():
    image = np.zeros((100, 100, 3), np.uint8)
    colour = palette(NAMES)[0]
    for (y0, x0), rows in (((50, 10), slice(36, 50)), ((2, 10), slice(2, 16)), ((50, 90), slice(36, 50))):
        it = boxes.drawing(image, np.array([[y0, x0, y0 + 9.0, x0 + 9]]), np.array([0]), ["cat 0.90"])
        picture = boxes.drawn(it, NAMES, 12)
        chip = (picture[rows] == colour).all(axis=-1)
        assert chip.mean() > 0.2
        assert (picture[rows] > 240).all(axis=-1).any()  # white letters
        assert picture[:30].any() == (y0 == 2)


@pytest.mark.parametrize("shape", [(1, 1, 3), (8, 8, 1), (9, 9, 4), (30, 200, 3), (700, 40, 3)])
def test_any_image_with_boxes_at_its_borders(tmp_path, shape):
    rng, (H, W) = np.random.default_rng(0), shape[:2]
    image = rng.integers(0, 256, shape, dtype=np.uint8)
    places = np.array([[0, 0, H, W], [0, 0, 0, 0], [H, W, H, W], [H / 2, W / 2, H / 2 + 0.1, W / 2 + 0.1], [0, 0, H, 1]], float)
    kinds = np.arange(5) % len(ODD)
    it = boxes.drawing(image, places, kinds, boxes.told(ODD, kinds, rng.random(5)), odd=np.array([True] * 5))
    assert boxes.drawn(it, ODD).shape == (H, W, 3)
    boxes.sheet(tmp_path / "s.png", [it] * 5, ODD, "title $ of it")
    boxes.rows(
        tmp_path / "r.png", [boxes.Row(it, boxes.drawing(image, places[:0], kinds[:0]), "1 missed", "0 wrong")], ODD, "t"
    )
    for name in ("s.png", "r.png"):
        assert imread(tmp_path / name)[..., :3].std() > 0.03


def test_no_more_names_than_find_room():
    image, places, kinds = np.zeros((50, 50, 3), np.uint8), np.tile([[0.0, 0, 9, 9]], (30, 1)), np.zeros(30, int)
    assert set(boxes.enlarged(boxes.drawing(image, places, kinds, ["cat"] * 30)).words) == {""}
    few = boxes.enlarged(boxes.drawing(image, places[:5], kinds[:5], ["cat"] * 5))
    assert set(few.words) == {"cat"}
    assert few.image.shape == (boxes.CANVAS, boxes.CANVAS, 3)
    np.testing.assert_allclose(few.boxes[0], np.array([0, 0, 9, 9]) * boxes.CANVAS / 50)
    assert boxes.told(["a$b$", "x" * 90], np.array([0, 1]), np.array([0.5, 1])) == ["a$b$ 0.50", "x" * 13 + "… 1.00"]


# ---- a run's pictures ----


@pytest.fixture
def asked(monkeypatch):
    """What the pictures were asked to show, by the names of their files."""
    kept = {}
    for module, name in ((boxes, "rows"), (boxes, "sheet"), (counts, "labels"), (scores, "confusion")):
        monkeypatch.setattr(module, name, lambda path, *rest: kept.update({path.name: rest}))
    return kept


def a_split():
    """A task, three images shown as padded halves, and what is known of them: the first right, the others not."""
    image = np.zeros((32, 32, 3), np.uint8)
    source = [{"image": image + i, "content": np.array([16, 32]), "size": np.array([32, 64])} for i in range(3)]
    box, other = [4.0, 8, 20, 40], [20.0, 40, 30, 60]
    truth = [
        {"boxes": np.array(b).reshape(-1, 4), "kinds": np.array(k), "crowd": np.array(c), "area": np.full(len(k), 9.0)}
        for b, k, c in (([box], [0], [False]), ([box, other], [1, 1], [False, True]), ([box, other], [0, 2], [False] * 2))
    ]
    found = [
        {"boxes": np.array(b).reshape(-1, 4), "kinds": np.array(k), "scores": np.array(s)}
        for b, k, s in (([box], [0], [0.9]), ([box, other], [0, 1], [0.8, 0.7]), ([box, other], [0, 1], [0.6, 0.05]))
    ]
    examples = {"id": np.array([5, 6, 7]), "size": np.tile([32, 64], (3, 1))}
    for name, those in (("truth", truth), ("found", found)):
        examples[name] = np.empty(3, object)
        examples[name][:] = those
    figures = {"examples": 3, **boxscores.box_figures(truth, found, examples["size"], NAMES)}
    return types.SimpleNamespace(class_names=NAMES), source, examples, figures


def test_an_evaluations_pictures_and_files(tmp_path, asked):
    task, source, examples, figures = a_split()
    assert figures["threshold"] == pytest.approx((0.6 + 0.05) / 2)
    detection.evaluation(tmp_path, task, examples, figures, source, "mine test")
    rows, names, title = asked.pop("worst_boxes.png")
    assert names == NAMES
    assert f"at {figures['threshold']:.2f}" in title
    assert [int(row.truth.image[0, 0, 0]) for row in rows] == [1, 2, 0]  # two errors, one, none
    assert [row.missed for row in rows] == ["1 of 1 missed", "1 of 2 missed", "0 of 1 missed"]
    assert [row.wrong for row in rows] == ["1 of 2 wrong", "0 of 1 wrong", "0 of 1 wrong"]
    first = rows[0]
    assert first.truth.image.shape == (16, 32, 3)
    np.testing.assert_array_equal(first.truth.boxes, [[2, 4, 10, 20], [10, 20, 15, 30]])
    assert first.truth.odd.tolist() == [True, False]
    assert first.truth.crowd.tolist() == [False, True]
    assert first.found.odd.tolist() == [True, False]  # what lies in the crowd is not wrong
    assert first.found.words == ["cat 0.80", "dog 0.70"]
    matrix, names, _ = asked.pop("confusion.png")
    np.testing.assert_array_equal(matrix, [[2, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    assert names == [*NAMES, "background"]
    assert not asked
    assert_drawn(tmp_path / "precision_recall.png")
    found, truth = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("predictions", "truth"))
    assert [image["id"] for image in truth["images"]] == [5, 6, 7]
    assert [x["image_id"] for x in found] == [5, 6, 6, 7, 7]
    assert found[0] == {"image_id": 5, "category_id": 1, "bbox": [8, 4, 32, 16], "score": 0.9}
    known = {"id": 1, "image_id": 5, "category_id": 1, "bbox": [8, 4, 32, 16], "area": 9, "iscrowd": 0}
    assert truth["annotations"][0] == known


def test_a_validations_picture(tmp_path, asked):
    task, source, examples, figures = a_split()
    detection.validation(tmp_path, task, {"examples": examples, "figures": figures}, source, "mine val")
    rows, _, title = asked.pop("val_boxes.png")
    assert [int(row.truth.image[0, 0, 0]) for row in rows] == [0, 1, 2]
    assert title.startswith(f"mine val, AP {figures['ap']:.2%}")
    assert not asked


def test_rows_are_those_of_their_images():
    """Images that were skipped have no row."""
    source = type("Source", (list,), {"ids": np.array([3, 8, 5, 9])})("abcd")
    assert [row(source, np.array([3, 5, 9]), i) for i in range(3)] == ["a", "c", "d"]
    assert row(["a", "b"], np.array([7, 9]), 1) == "b"


def test_arrays_hold_every_box():
    _, _, examples, _ = a_split()
    arrays = detection.arrays(None, examples)
    assert all(x.dtype != object for x in arrays.values())
    assert arrays["of"].tolist() == [0, 1, 1, 2, 2]
    for i in range(3):
        for prefix, kept in (("", examples["found"]), ("true_", examples["truth"])):
            own = arrays[f"{prefix}of"] == i
            for name, x in kept[i].items():
                np.testing.assert_array_equal(arrays[prefix + name][own], x)


def test_figures_for_people():
    _, _, _, figures = a_split()
    told = dict(detection.lines(figures))
    assert told["images"] == "3"
    assert told["boxes"] == "4"
    assert told["AP50"] == f"{figures['ap50']:.2%}"
    assert told["AP, AP50 of dog"] == "0.00%, 0.00%"
    figures["ap_per_class"]["ox"] = None
    assert dict(detection.lines(figures))["AP, AP50 of ox"] == "–"
    assert curves.headline(figures) == "ap"


@pytest.mark.parametrize("K", [1, 60])
def test_precision_and_recall_of_any_number_of_classes(tmp_path, monkeypatch, K):
    names, drawn = [f"{ODD[i % 10]} {i}" for i in range(K)], []
    precision = np.linspace(0, 1, K)[:, None] * np.linspace(1, 0, 101)
    precision[K // 2] = np.nan if K > 1 else 1
    figures = {"recall": 0.5, "precision": 0.7, "threshold": 0.3}
    monkeypatch.setattr(detection, "save", lambda figure, path: drawn.append(figure))
    detection._precision_recall(None, precision, figures, names, "title")
    (ax,) = drawn[0].axes
    assert len(ax.lines) == (K - 1 if K > 1 else 1) + 2
    assert len(drawn[0].legends[0].get_texts()) == min(max(1, K - 1), detection.LINES) + 2
    monkeypatch.undo()
    detection._precision_recall(tmp_path / "p.png", precision, figures, names, "title")
    assert_drawn(tmp_path / "p.png")
    detection._precision_recall(tmp_path / "none.png", np.full((2, 101), np.nan), figures, ["a", "b"], "title")


def test_the_first_batch_with_boxes_where_the_model_sees_them(tmp_path, asked):
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 24, 32, 3), np.uint8),
        "boxes": np.tile(np.float32([[0.25, 0, 0.75, 0.5], [0, 0, 0, 0]]), (8, 1, 1)),
        "label": np.tile(np.int32([2, NOBODY]), (8, 1)),
        "crowd": np.zeros((8, 2), bool),
        "id": np.arange(8, dtype=np.int32),
        "mask": np.ones(8, bool),
    }
    batches = types.SimpleNamespace(starting_at=lambda step: iter([batch]))
    config = Config(data=ScenesData(truth="boxes"), task=DetectionConfig(), augment=AugmentConfig(flip=True))
    prepare = make_prepare(config.data, config.augment)
    source = [{"label": np.array([2, 1, NOBODY])}, {"label": np.array([2, NOBODY])}]
    task = types.SimpleNamespace(class_names=NAMES)
    detection.beginning(tmp_path, task, config, batches, prepare, {"train": source, "val": source[:1]})
    those, names, _ = asked.pop("train_batch.png")
    assert names == NAMES
    sides = {tuple(it.boxes[0]) for it in those}
    assert sides == {(6, 0, 18, 16), (6, 16, 18, 32)}  # some are flipped
    for it, image in zip(those, batch["image"], strict=True):
        assert it.words == ["ox"]
        np.testing.assert_array_equal(it.image, image if it.boxes[0, 1] == 0 else image[:, ::-1])
    kinds, _, unit = asked.pop("labels.png")
    assert {name: x.tolist() for name, x in kinds.items()} == {"train": [2, 1, 2], "val": [2, 1]}
    assert unit == "boxes of up to 100 images"


def test_the_page_has_the_pictures():
    assert {"worst_boxes.png", "val_boxes.png", "precision_recall.png"} <= page.PICTURES.keys()
    assert {"worst_boxes.png", "val_boxes.png"} <= page.WIDE
