"""Panoptic quality against the definition written out, mask AP against pycocotools on JSON files made by hand."""

import json

import numpy as np
import pytest
from pycocotools import mask as tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vit.tasks.quality import mask_ap, panoptic_quality, panoptic_sums, predicted_objects, true_objects

K = 4


def blocks(rng, most, side=24):
    """A map of rectangles over each other."""
    x = np.zeros((side, side), int)
    for _ in range(6):
        (y0, y1), (x0, x1) = np.sort(rng.integers(0, side + 1, (2, 2)))
        x[y0:y1, x0:x1] = rng.integers(0, most)
    return x


def image(seed):
    """Predicted segments and their classes, then label and objects: about alike, so that many match."""
    rng = np.random.default_rng(seed)
    label = blocks(rng, K).astype(np.uint8)
    instance = np.where(label >= 2, 1 + blocks(rng, 3), 0).astype(np.uint16)
    key = label.astype(int) * 10 + instance
    kinds, segments = np.unique(key, return_inverse=True)
    segments = np.roll(segments.reshape(key.shape), rng.integers(-2, 3, 2), (0, 1))
    classes = np.where(rng.random(len(kinds)) < 0.2, rng.integers(0, K, len(kinds)), kinds // 10)
    segments = np.where(rng.random(segments.shape) < 0.1, -1, segments)
    label[blocks(rng, 3) == 2] = 255
    return segments, classes, label, instance


def by_definition(segments, classes, label, instance):
    """Kirillov et al., section 4: pair by pair."""
    sums = np.zeros((4, K))
    void = label == 255
    truth = {(k, n): (label == k) & (instance == n) for k in range(K) for n in np.unique(instance)}
    truth = {key: there for key, there in truth.items() if there.any()}
    ours = {q: segments == q for q in range(len(classes)) if (segments == q).any()}
    hit_truth, hit_ours = set(), set()
    for (k, n), there in truth.items():
        for q, here in ours.items():
            common = (there & here).sum()
            iou = common / (there.sum() + (here & ~void).sum() - common)
            if classes[q] == k and iou > 0.5:
                sums[:2, k] += iou, 1
                hit_truth.add((k, n))
                hit_ours.add(q)
    for q in ours.keys() - hit_ours:
        if (ours[q] & void).sum() / ours[q].sum() <= 0.5:
            sums[2, classes[q]] += 1
    for k, _ in truth.keys() - hit_truth:
        sums[3, k] += 1
    return sums


def test_panoptic_sums_are_those_of_the_definition():
    every = [image(seed) for seed in range(40)]
    got = [panoptic_sums(*x, K) for x in every]
    np.testing.assert_allclose(got, [by_definition(*x) for x in every], rtol=1e-12)
    total = np.sum(got, axis=0)
    assert (total[1:] > 3).all()  # of every class some match, some are too many, some are missed
    figures = panoptic_quality(total, things=np.array([False, False, True, True]))
    iou, hits, over, missed = total
    pq = iou / (hits + over / 2 + missed / 2)
    assert figures["pq"] == pytest.approx(pq.mean())
    assert figures["sq"] == pytest.approx((iou / hits).mean())
    assert figures["rq"] == pytest.approx((hits / (hits + over / 2 + missed / 2)).mean())
    assert (figures["pq_stuff"], figures["pq_things"]) == (pytest.approx(pq[:2].mean()), pytest.approx(pq[2:].mean()))
    assert figures["pq_per_class"] == pytest.approx(list(pq))


def test_void_neither_counts_in_a_union_nor_makes_a_segment_one_too_many():
    label, instance = np.zeros((4, 10), np.uint8), np.zeros((4, 10), np.uint16)
    label[:, 6:] = 255
    whole = np.zeros((4, 10), int)  # 24 pixels of class 0 and 16 of void
    np.testing.assert_array_equal(panoptic_sums(whole, np.array([0]), label, instance, 2)[:, 0], [1, 1, 0, 0])
    segments = np.where(np.arange(10) >= 5, 1, 0) * np.ones((4, 1), int)  # segment 1: 4 pixels of class 0 and 16 of void
    np.testing.assert_array_equal(panoptic_sums(segments, np.array([0, 1]), label, instance, 2)[:, 1], [0, 0, 0, 0])
    segments = np.where(np.arange(10) >= 2, 1, 0) * np.ones((4, 1), int)  # segment 1: half of it is void, no more
    np.testing.assert_array_equal(panoptic_sums(segments, np.array([0, 1]), label, instance, 2)[:, 1], [0, 0, 1, 0])


def test_classes_that_nobody_has_are_none():
    figures = panoptic_quality(np.array([[0.8, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 0.0]]), things=np.zeros(3, bool))
    assert figures["pq_per_class"] == [0.8, 0.0, None]
    assert figures["pq"] == 0.4
    assert figures["pq_things"] is None


def scene(seed):
    """An image's label, objects and three predicted masks an object, some of them good; one object is over 96² pixels."""
    rng = np.random.default_rng(seed)
    label, instance = np.zeros((120, 130), np.uint8), np.zeros((120, 130), np.uint16)
    masks, classes, scores = [], [], []
    for number, side in enumerate((110, 50, 20, 9), 1):
        y, x = rng.integers(0, 120 - side), rng.integers(0, 130 - side)
        kind = rng.integers(1, K)
        label[y : y + side, x : x + side], instance[y : y + side, x : x + side] = kind, number
        for far in rng.integers(0, side // 2, 3):
            mask = np.zeros(label.shape, bool)
            mask[y + far : y + side, x : x + side - far // 2] = True
            masks.append(mask)
            classes.append(kind if rng.random() < 0.8 else rng.integers(1, K))
            scores.append(rng.random())
    label[:, :4] = 255
    return label, instance, np.array(masks), np.array(classes), np.array(scores, np.float32)


def by_pycocotools(scenes, folder):
    """pycocotools used as its documentation does it: files, `loadRes`."""
    truth, found = [], []
    for i, (label, instance, masks, classes, scores) in enumerate(scenes):
        for number in np.unique(instance[(instance > 0) & (label != 255)]):
            there = (instance == number) & (label != 255)
            code = tools.encode(np.asfortranarray(there.astype(np.uint8)))
            code["counts"] = code["counts"].decode()
            box = tools.toBbox(code).tolist()
            row = {"image_id": i + 1, "category_id": int(label[there][0]), "segmentation": code, "bbox": box, "iscrowd": 0}
            truth.append({**row, "id": len(truth) + 1, "area": int(there.sum())})
        for mask, kind, score in zip(masks, classes, scores, strict=True):
            code = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
            code["counts"] = code["counts"].decode()
            found.append({"image_id": i + 1, "category_id": int(kind), "segmentation": code, "score": float(score)})
    images = [{"id": i + 1, "height": 120, "width": 130} for i in range(len(scenes))]
    categories = [{"id": k, "name": str(k)} for k in range(K)]
    (folder / "truth.json").write_text(json.dumps({"images": images, "annotations": truth, "categories": categories}))
    (folder / "found.json").write_text(json.dumps(found))
    coco = COCO(str(folder / "truth.json"))
    judge = COCOeval(coco, coco.loadRes(str(folder / "found.json")), "segm")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return judge


def ours(scenes):
    """From what a run would keep of each example, through JSON."""
    kept = [(true_objects(label, instance, K), predicted_objects(*found)) for label, instance, *found in scenes]
    return mask_ap(*map(list, zip(*json.loads(json.dumps(kept)), strict=True)), K)


def test_mask_ap_is_pycocotools(tmp_path, capsys):
    scenes = [scene(seed) for seed in range(6)]
    judge = by_pycocotools(scenes, tmp_path)
    assert capsys.readouterr().out
    got = ours(scenes)
    assert capsys.readouterr() == ("", "")
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    assert [got[name] for name in names] == list(judge.stats[:6])
    assert len(set(judge.stats[:6])) == 6
    assert (judge.stats[:6] > 0).all()
    assert got["ap_per_class"][0] is None  # the background has no objects
    assert np.mean(got["ap_per_class"][1:]) == pytest.approx(judge.stats[0])


def test_mask_ap_without_objects_or_predictions():
    label, instance, masks, classes, scores = scene(0)
    nothing = np.zeros_like(masks)
    assert ours([(label, instance, nothing, classes, scores)])["ap"] == 0
    assert ours([(label, np.zeros_like(instance), masks, classes, scores)])["ap"] is None


def test_only_the_best_masks_are_kept():
    _, _, masks, classes, scores = scene(0)
    kept = predicted_objects(masks, classes, scores, most=2)
    assert [x["score"] for x in kept] == sorted(map(float, scores), reverse=True)[:2]
    best = tools.encode(np.asfortranarray(masks[scores.argmax()].astype(np.uint8)))
    assert tools.iou([{name: kept[0][name] for name in ("size", "counts")}], [best], [0]) == 1
