"""Figures of boxes against pycocotools on JSON files, and against average precision, F-scores and matches written out."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vit.tasks import boxscores
from vit.tasks.boxscores import (
    UNCHOSEN,
    above,
    best_threshold,
    box_figures,
    confusion,
    curves,
    missed,
    to_coco,
    to_results,
    verdict,
)

K, SIDE = 4, 400
NAMES = list("abcd")
TOTALS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")


def truth_of(boxes=(), kinds=(), crowd=None, area=None):
    boxes = np.array(boxes, float).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    crowd = np.zeros(len(boxes), bool) if crowd is None else np.array(crowd, bool)
    area = sides.prod(axis=1) if area is None else np.array(area, float)
    return {"boxes": boxes, "kinds": np.array(kinds, np.int32), "crowd": crowd, "area": area}


def found_of(boxes=(), kinds=(), scores=()):
    scores = np.array(scores, np.float32)
    return {"boxes": np.array(boxes, float).reshape(-1, 4), "kinds": np.array(kinds, np.int32), "scores": scores}


def image(seed, most=12, coarse=False):
    """An image's true and found boxes, of all sizes; with `coarse` scores and places that are often equal."""
    rng = np.random.default_rng(seed)
    n = rng.integers(0, most + 1)
    low, sides = rng.uniform(0, 200, (n, 2)), np.exp(rng.uniform(2, 5.2, (n, 2)))
    truth = truth_of(np.hstack([low, low + sides]), rng.integers(0, K - 1, n), rng.random(n) < 0.15)
    truth["area"] *= rng.uniform(0.5, 1, n)  # as of masks
    again = np.repeat(np.arange(n), 2)
    boxes = truth["boxes"][again] + rng.normal(0, 0.15, (2 * n, 4)) * np.tile(sides, 2)[again]
    strange = rng.uniform(0, 150, (3, 2))
    boxes = np.vstack([boxes, np.hstack([strange, strange + rng.uniform(5, 200, (3, 2))])])
    kinds = np.append(truth["kinds"][again], [0, 1, 3])
    kinds = np.where(rng.random(len(kinds)) < 0.2, rng.integers(0, K, len(kinds)), kinds)
    scores = rng.random(len(kinds)).astype(np.float32)
    if coarse:
        boxes, scores = np.round(boxes, -1), np.round(scores, 1)
    order = np.argsort(-scores, kind="stable")  # as a task gives them
    good = (boxes[order, 2:] > boxes[order, :2]).all(axis=1)
    return truth, found_of(boxes[order][good], kinds[order][good], scores[order][good])


def images(count, **how):
    return tuple(map(list, zip(*(image(seed, **how) for seed in range(count)), strict=True)))


def by_pycocotools(truth, found, folder):
    """pycocotools used as its documentation does it: files, `loadRes`."""

    def xywh(box):
        y0, x0, y1, x1 = map(float, box)
        return [x0, y0, x1 - x0, y1 - y0]

    annotations, results = [], []
    for i, (t, f) in enumerate(zip(truth, found, strict=True)):
        for box, kind, crowd, area in zip(t["boxes"], t["kinds"], t["crowd"], t["area"], strict=True):
            row = {"image_id": 10 * i + 5, "category_id": int(kind) + 1, "bbox": xywh(box), "iscrowd": int(crowd)}
            annotations.append({**row, "id": len(annotations) + 1, "area": float(area)})
        for box, kind, score in zip(f["boxes"], f["kinds"], f["scores"], strict=True):
            results.append({"image_id": 10 * i + 5, "category_id": int(kind) + 1, "bbox": xywh(box), "score": float(score)})
    whole = {
        "images": [{"id": 10 * i + 5, "height": SIDE, "width": SIDE} for i in range(len(truth))],
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(NAMES)],
    }
    (folder / "truth.json").write_text(json.dumps(whole))
    (folder / "found.json").write_text(json.dumps(results))
    coco = COCO(str(folder / "truth.json"))
    judge = COCOeval(coco, coco.loadRes(str(folder / "found.json")), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return judge


@pytest.mark.parametrize("coarse", [False, True])
def test_figures_are_pycocotools(tmp_path, capsys, coarse):
    truth, found = images(40, coarse=coarse)
    assert any(not len(t["kinds"]) for t in truth)  # an image without boxes counts
    assert sum(t["crowd"].sum() for t in truth) > 10
    judge = by_pycocotools(truth, found, tmp_path)
    assert capsys.readouterr().out
    figures = box_figures(truth, found, [(SIDE, SIDE)] * 40, NAMES)
    assert capsys.readouterr() == ("", "")
    np.testing.assert_allclose([figures[name] for name in TOTALS], judge.stats[:9], atol=1e-6)
    assert len(set(judge.stats[:9])) == 9
    precision = judge.eval["precision"][..., 0, -1]
    for k, name in enumerate(NAMES[:3]):
        assert figures["ap_per_class"][name] == pytest.approx(precision[:, :, k].mean(), abs=1e-6)
        assert figures["ap50_per_class"][name] == pytest.approx(precision[0, :, k].mean(), abs=1e-6)
    assert figures["ap_per_class"]["d"] is None
    assert figures["ap50_per_class"]["d"] is None
    np.testing.assert_allclose(curves(truth, found, K)[:3], precision[0, :, :3].T, atol=1e-6)
    assert np.isnan(curves(truth, found, K)[3]).all()
    assert figures["boxes"] == sum((~t["crowd"]).sum() for t in truth)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_without_boxes():
    nothing = box_figures([truth_of()], [found_of()], [(9, 9)], NAMES)
    assert (nothing["ap"], nothing["ap_small"], nothing["ar100"], nothing["f1"]) == (0.0, None, 0.0, 0.0)
    assert nothing["threshold"] == UNCHOSEN
    assert box_figures([truth_of([[1, 1, 9, 9]], [0])], [found_of()], [(9, 9)], NAMES)["ap_per_class"]["a"] == 0.0
    assert box_figures([truth_of()], [found_of([[1, 1, 9, 9]], [0], [0.9])], [(9, 9)], NAMES)["ap"] == 0.0
    assert box_figures([], [], [], NAMES)["ap"] == 0.0


def plain_iou(a, b, crowd):
    h, w = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in range(2))
    common = max(h, 0) * max(w, 0)
    area_a, area_b = ((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    return common / (area_a if crowd else area_a + area_b - common)


def plain_matches(truth, found, kind):
    """(score, right) of an image's boxes of a class in falling order, those in crowds left out, as VOC and COCO define it."""
    rows, used = [], set()
    for d in np.argsort(-found["scores"], kind="stable"):
        if found["kinds"][d] != kind:
            continue
        overlaps = {
            g: plain_iou(found["boxes"][d], truth["boxes"][g], truth["crowd"][g])
            for g in np.flatnonzero(truth["kinds"] == kind)
        }
        free = {g: o for g, o in overlaps.items() if g not in used and not truth["crowd"][g] and o >= 0.5}
        if free:
            used.add(max(free, key=free.get))
        elif any(o >= 0.5 and truth["crowd"][g] for g, o in overlaps.items()):
            continue
        rows.append((float(found["scores"][d]), bool(free)))
    return rows


def plain_ap50(truth, found, kind):
    """At each of 101 recalls the best precision of those that reach it."""
    total = sum(int((~t["crowd"] & (t["kinds"] == kind)).sum()) for t in truth)
    rows = [row for t, f in zip(truth, found, strict=True) for row in plain_matches(t, f, kind)]
    rows.sort(key=lambda row: -row[0])
    hits = np.cumsum([right for _, right in rows]) if rows else np.zeros(0)
    recall, precision = hits / total, hits / (1 + np.arange(len(hits)))
    return np.mean([max(precision[recall >= r], default=0) for r in np.linspace(0, 1, 101)])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=6))
def test_ap50_and_threshold_are_those_of_the_definition(seeds):
    truth, found = zip(*(image(seed, most=5) for seed in seeds), strict=True)
    precision = curves(truth, found, K)
    for k in range(K):
        if any((~t["crowd"] & (t["kinds"] == k)).any() for t in truth):
            assert precision[k].mean() == pytest.approx(plain_ap50(truth, found, k), abs=1e-9)
    told, total = best_threshold(truth, found), sum((~t["crowd"]).sum() for t in truth)

    def at(threshold):
        rows = [
            row for t, f in zip(truth, found, strict=True) for k in range(K) for row in plain_matches(t, above(f, threshold), k)
        ]
        hits = sum(right for _, right in rows)
        return hits / max(len(rows), 1), hits / max(total, 1), 2 * hits / max(len(rows) + total, 1)

    each = {float(s): at(float(s))[2] for f in found for s in f["scores"]}
    assert told.f1 == pytest.approx(max(each.values(), default=0))
    if told.f1:
        assert told[1:] == pytest.approx(at(told.threshold))
        best = max(s for s, f1 in each.items() if f1 == max(each.values()))
        assert told.threshold <= best
        assert told[1:] == pytest.approx(at(best))


def test_the_threshold_lies_between_two_scores_and_equal_ones_go_together():
    box, far = [0, 0, 10, 10], [50, 50, 60, 60]
    truth = [truth_of([box], [0]), truth_of([box], [1])]
    found = [found_of([box, far], [0, 0], [0.9, 0.5]), found_of([box, far], [1, 1], [0.7, 0.5])]
    assert best_threshold(truth, found) == (pytest.approx(0.6), 1.0, 1.0, 1.0)
    found = [found_of([box, far], [0, 0], [0.5, 0.5]), found_of()]
    assert best_threshold(truth, found) == (pytest.approx(0.25), 0.5, 0.5, 0.5)
    wrong = [found_of([far], [0], [0.9]), found_of()]
    assert best_threshold(truth, wrong) == (UNCHOSEN, 0.0, 0.0, 0.0)


def test_a_box_in_a_crowd_is_neither_right_nor_wrong():
    truth = truth_of([[0, 0, 10, 10], [20, 20, 80, 80]], [0, 0], [False, True])
    found = found_of([[30, 30, 40, 40], [0, 0, 10, 10], [25, 30, 50, 60]], [0, 0, 0], [0.9, 0.8, 0.7])
    seen = verdict(truth, found)
    assert seen.pair.tolist() == [-1, 0, -1]
    assert seen.ignored.tolist() == [True, False, True]
    assert not missed(truth, seen.pair).any()
    assert missed(truth, np.zeros(0, int)).tolist() == [True, False]
    assert best_threshold([truth], [found])[1:] == (1.0, 1.0, 1.0)
    np.testing.assert_array_equal(confusion([truth], [found], 1, 0.0), [[1, 0], [0, 0]])


def test_confusion():
    boxes = [[0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60], [70, 70, 80, 80]]
    truth = truth_of(boxes, [0, 1, 2, 2])
    found = found_of(
        [*boxes[:2], [21, 20, 40, 40], [52, 50, 60, 60], [90, 90, 99, 99]], [0, 2, 1, 0, 1], [0.9, 0.8, 0.7, 0.6, 0.5]
    )
    matrix = confusion([truth, truth_of()], [found, found_of()], 3, 0.3)
    expected = [
        [1, 0, 0, 0],  # the first is right
        [0, 1, 0, 0],  # right, though a better score of another class lies on it
        [1, 0, 0, 1],  # the third was taken for the first class, the fourth is missed
        [0, 1, 1, 0],  # one box lies on nothing, one on a box that is found
    ]
    np.testing.assert_array_equal(matrix, expected)
    np.testing.assert_array_equal(confusion([truth], [found], 3, 0.85)[:, -1], [0, 1, 2, 0])
    for threshold in (0.0, 0.4, 0.8):
        truth, found = images(25)
        matrix = confusion(truth, found, K, threshold)
        kept = [above(f, threshold) for f in found]
        pairs = [verdict(t, f) for t, f in zip(truth, kept, strict=True)]
        assert np.trace(matrix) == sum((p.pair >= 0).sum() for p in pairs)
        count = [sum((~t["crowd"] & (t["kinds"] == k)).sum() for t in truth) for k in range(K)]
        np.testing.assert_array_equal(matrix[:K].sum(axis=1), count)
        assert matrix[:, :K].sum() == sum(len(f["kinds"]) - p.ignored.sum() for f, p in zip(kept, pairs, strict=True))


def test_coco_reads_what_is_written(tmp_path):
    truth, found = images(6)
    ids, sizes, kinds = [7, 3, 11, 20, 21, 1], [(SIDE, SIDE + i) for i in range(6)], [3, 5, 90, 91]
    (tmp_path / "truth.json").write_text(json.dumps(to_coco(truth, sizes, NAMES, ids, kinds, list("fedcba"))))
    (tmp_path / "results.json").write_text(json.dumps(to_results(found, ids, kinds)))
    coco = COCO(str(tmp_path / "truth.json"))
    assert [(x["id"], x["height"], x["width"], x["file_name"]) for x in coco.dataset["images"]] == [
        (i, *size, name) for i, size, name in zip(ids, sizes, "fedcba", strict=True)
    ]
    assert [(x["id"], x["name"]) for x in coco.dataset["categories"]] == list(zip(kinds, NAMES, strict=True))
    judge = COCOeval(coco, coco.loadRes(str(tmp_path / "results.json")), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert judge.stats[0] == pytest.approx(box_figures(truth, found, sizes, NAMES)["ap"], abs=1e-9)


def test_the_threshold_of_a_checkpoint():
    figures = {"ap": 0.4, "ap50": 0.7, "threshold": 0.35}
    assert boxscores.score(figures) == (0.4, 0.7, 0.35)
    scores = {"100": [0.2, 0.5, 0.1], "200": [0.4, 0.7, 0.35], "1000": [0.3, 0.7, 0.2]}
    told = [boxscores.chosen_threshold(scores, step) for step in (50, 100, 250, 2000)]
    assert told == [UNCHOSEN, 0.1, 0.35, 0.2]
    assert boxscores.chosen_threshold({"0": [0.3, -2.0]}, 3) == UNCHOSEN
