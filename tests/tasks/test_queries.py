"""Targets, matching and losses of boxes that queries predict, and what is found. What transformers has is in tests/parity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit.config import NOBODY, DetrHead, ViTConfig, YolosHead
from vit.models.boxes import centred, paired_iou
from vit.models.detr import Detr
from vit.models.vit import merge, split
from vit.tasks.queries import costs, focal, losses, noisy, query_loss, query_outputs, targets

K = 3
DETR, YOLOS = DetrHead(queries=6), YolosHead(queries=6)
HEADS = pytest.mark.parametrize("head", [DETR, YOLOS], ids=["detr", "yolos"])


def batch(B=2, M=5, seed=0):
    """Boxes of which each image has one less than the one before."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.6, (B, M, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 0.4, (B, M, 2))], axis=-1).astype(np.float32)
    there = np.arange(M) < M - 1 - np.arange(B)[:, None]
    label = np.where(there, rng.integers(0, K, (B, M)), NOBODY).astype(np.int32)
    crowd = np.zeros((B, M), bool)
    return {name: jnp.asarray(x) for name, x in {"boxes": boxes, "label": label, "crowd": crowd}.items()}


def prediction(head, B=2, seed=1):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.6, (B, 6, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 0.4, (B, 6, 2))], axis=-1)
    classes = rng.standard_normal((B, 6, K + isinstance(head, YolosHead)))
    return {"boxes": jnp.asarray(boxes, jnp.float32), "classes": jnp.asarray(classes, jnp.float32)}


def perfect(wanted, head, scale=8.0):
    """What a model that knows the answer says, its queries in another order than the targets."""
    M = wanted.label.shape[1]
    label = jnp.where(wanted.valid, wanted.label, K)
    label = jnp.pad(label, ((0, 0), (6 - M, 0)), constant_values=K)[:, ::-1]
    boxes = jnp.pad(wanted.boxes, ((0, 0), (6 - M, 0), (0, 0)), constant_values=0.5)[:, ::-1]
    classes = scale * (2 * jax.nn.one_hot(label, K + 1) - 1)
    return {"boxes": boxes, "classes": classes if isinstance(head, YolosHead) else classes[..., :K]}


@functools.cache
def compiled(head):
    return jax.jit(lambda predictions, wanted: losses(predictions, wanted, head))


def test_targets_are_rows_in_use_that_are_no_crowds():
    data = batch()
    data["crowd"] = data["crowd"].at[:, 1].set(True)
    got = targets(data, 6)
    np.testing.assert_array_equal(got.valid, [[True, False, True, True, False], [True, False, True, False, False]])
    np.testing.assert_array_equal(got.crowded, [[False, True, False, False, False]] * 2)
    assert (got.label >= 0).all()


def test_of_too_many_targets_the_largest_stay():
    data = batch()
    got = targets(data, 2)
    for i in range(2):
        boxes = np.asarray(data["boxes"][i])[np.asarray(data["label"][i]) != NOBODY]
        areas = np.sort((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))[::-1]
        np.testing.assert_allclose((got.boxes[i, :, 2:] - got.boxes[i, :, :2]).prod(axis=1), areas[:2], rtol=1e-6)
    assert got.valid.all()


@HEADS
def test_costs(head):
    """As plain as DETR's and Deformable DETR's papers have them."""
    data, p = batch(1), jax.tree.map(lambda x: x[0], prediction(head, 1))
    wanted = jax.tree.map(lambda x: x[0], targets(data, 6))
    got = np.asarray(costs(p, wanted, head))
    for q in range(6):
        for m in range(4):
            a, b = np.asarray(p["boxes"][q]), np.asarray(wanted.boxes[m])
            far = np.abs(np.asarray(centred(p["boxes"][q]) - centred(wanted.boxes[m]))).sum()
            common = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
            union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common
            frame = np.prod(np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2]))
            x, k = np.asarray(p["classes"][q], float), int(wanted.label[m])
            if head is YOLOS:
                named = -np.exp(x[k]) / np.exp(x).sum()
            else:
                s = 1 / (1 + np.exp(-x[k]))
                named = -0.25 * (1 - s) ** 2 * np.log(s) + 0.75 * s**2 * np.log(1 - s)
            giou = common / union - (frame - union) / frame
            expected = head.class_weight * named + head.box_weight * far - head.giou_weight * giou
            assert got[q, m] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_focal_loss():
    x, truth = jnp.linspace(-4, 4, 9), jnp.asarray([0.0, 1.0] * 4 + [0.0])
    p = jax.nn.sigmoid(x)
    wanted = jnp.where(truth == 1, -0.25 * (1 - p) ** 2 * jnp.log(p), -0.75 * p**2 * jnp.log(1 - p))
    np.testing.assert_allclose(focal(x, truth), wanted, rtol=1e-4)


@HEADS
def test_who_knows_the_answer_has_hardly_a_loss(head):
    wanted = targets(batch(), 6)
    right = perfect(wanted, head)
    wrong = {**right, "boxes": right["boxes"][:, ::-1]}
    parts = compiled(head)([wrong, right], wanted)
    assert all(x.shape == (2, 2) for x in parts.values())
    for x in parts.values():
        assert x[:, 1].max() < 1e-3
    assert (parts["classes"] + parts["boxes"] + parts["giou"])[:, 0].min() > 0.3


@HEADS
def test_an_examples_loss_does_not_depend_on_its_neighbours(head):
    data = batch()
    data["label"] = data["label"].at[1].set(NOBODY)  # nothing there: every query should say so
    wanted, p, q = targets(data, 6), prediction(head), prediction(head, seed=2)
    together = compiled(head)([p, q], wanted)
    turned = compiled(head)(*jax.tree.map(lambda x: x[::-1], ([p, q], wanted)))
    for name, x in together.items():
        np.testing.assert_allclose(turned[name][::-1], x, rtol=1e-5)
        assert x[0].all()
        assert x[1].all() == (name == "classes")
    if head is YOLOS:
        nothing = -jax.nn.log_softmax(p["classes"][1])[:, -1].mean()
    else:
        nothing = focal(p["classes"][1], jnp.zeros((6, K))).sum()
    np.testing.assert_allclose(together["classes"][1, 0], nothing, rtol=1e-5)


@HEADS
def test_a_box_in_a_crowd_is_neither_right_nor_wrong(head):
    data = batch()
    data["label"] = data["label"].at[:, 0].set(1)
    data["boxes"] = data["boxes"].at[:, 0].set(jnp.array([0.0, 0.0, 1.0, 0.3]))
    data["crowd"] = data["crowd"].at[:, 0].set(True)
    wanted = targets(data, 6)
    right = perfect(wanted, head)
    inside = right["boxes"].at[:, 5].set(jnp.array([0.2, 0.1, 0.5, 0.4]))  # the crowd's own query, two thirds inside
    sure = right["classes"].at[:, 5].set(8 * (2 * jax.nn.one_hot(2, right["classes"].shape[-1]) - 1))
    parts = compiled(head)([{"boxes": inside, "classes": sure}] * 2, wanted)
    assert parts["classes"].max() < 1e-3
    outside = inside.at[:, 5].set(jnp.array([0.2, 0.2, 0.5, 0.5]))  # one third
    assert compiled(head)([{"boxes": outside, "classes": sure}] * 2, wanted)["classes"].min() > 0.3


def test_of_groups_each_is_matched_for_itself():
    wanted, right = targets(batch(), 6), perfect(targets(batch(), 6), DETR)
    other = prediction(DETR)
    both = {name: jnp.concatenate([right[name], other[name]], axis=1) for name in right}
    got, alone = compiled(DETR)([both], wanted), compiled(DETR)([right, other], wanted)
    for name, x in got.items():
        np.testing.assert_allclose(x[:, 0], alone[name].mean(axis=1), rtol=1e-5)


def test_noisy_boxes():
    wanted = targets(batch(), 6)
    keys = jax.random.split(jax.random.key(0), 2)
    got = noisy(wanted, 200, K, keys)
    there = np.asarray(wanted.valid[0])
    before, after = np.asarray(wanted.boxes[0]), np.asarray(got.boxes[0])
    side = before[:, 2:] - before[:, :2]
    centre = np.abs((after[..., :2] + after[..., 2:] - before[:, :2] - before[:, 2:]) / 2) / side
    stretch = (after[..., 2:] - after[..., :2]) / side
    assert 0.19 < centre.max() <= 0.2 + 1e-5
    assert 0.6 - 1e-5 <= stretch.min() < 0.62
    assert 1.38 < stretch.max() <= 1.4 + 1e-5
    assert 0.5 < paired_iou(got.boxes[0], jnp.broadcast_to(wanted.boxes[0], got.boxes[0].shape)).mean() < 0.9
    renamed = (np.asarray(got.label[0]) != np.asarray(wanted.label[0]))[:, there].mean()
    assert renamed == pytest.approx(0.2 * (K - 1) / K, abs=0.04)  # of the others, some draw the class that they had
    again = noisy(jax.tree.map(lambda x: x[::-1], wanted), 200, K, keys[::-1])
    np.testing.assert_array_equal(again.boxes[::-1], got.boxes)


def test_mended_boxes_answer_for_those_they_were_made_from():
    wanted = targets(batch(), 6)
    known = noisy(wanted, 2, K, jax.random.split(jax.random.key(0), 2))
    names = 8 * (2 * jax.nn.one_hot(jnp.tile(wanted.label, (1, 2)), K) - 1)
    right = {"boxes": jnp.tile(wanted.boxes, (1, 2, 1)), "classes": names}
    spoilt = {name: x.at[0, [4, 9]].set(0.4).at[1, [3, 4, 8, 9]].set(0.4) for name, x in right.items()}  # rows of no box
    wrong = {**right, "boxes": right["boxes"][:, jnp.array([1, 0, 2, 3, 4] * 2)]}
    parts = jax.jit(lambda ps: losses(ps, wanted, DETR, known))([right, spoilt, wrong])
    for x in parts.values():
        assert x[:, :2].max() < 1e-3
    assert parts["boxes"][:, 2].min() > 0.05


def test_what_is_found():
    classes = jnp.array([[[3.0, 2.0], [-1.0, 1.0], [0.0, -9.0]]])
    boxes = jnp.array([[[0.1, 0.1, 0.2, 0.2], [-0.1, 0.3, 0.4, 1.2], [0.5, 0.5, 0.6, 0.6]]])
    got = query_outputs({"boxes": boxes, "classes": classes}, DETR, 4)
    np.testing.assert_allclose(got["scores"][0], jax.nn.sigmoid(jnp.array([3.0, 2.0, 1.0, 0.0])), rtol=1e-5)
    np.testing.assert_array_equal(got["kinds"][0], [0, 1, 1, 0])
    np.testing.assert_allclose(got["boxes"][0], jnp.clip(boxes[0][jnp.array([0, 0, 1, 2])], 0, 1))
    more = query_outputs({"boxes": boxes, "classes": classes}, DETR, 9)
    assert more["scores"].shape == (1, 9)
    assert (more["scores"][0] > 0).sum() == 6
    one = query_outputs({"boxes": boxes, "classes": jnp.pad(classes, ((0, 0), (0, 0), (0, 1)))}, YOLOS, 4)
    np.testing.assert_array_equal(one["kinds"][0], [0, 1, 0, 0])
    np.testing.assert_allclose(one["scores"][0, 0], jax.nn.softmax(jnp.array([3.0, 2.0, 0.0]))[0], rtol=1e-5)
    assert one["scores"][0, 3] == 0


# ---- with a model ----


def scene(seed, side=32, most=4):
    """Bright and dark rectangles on grey."""
    rng, label = np.random.default_rng(seed), np.full(most, NOBODY, np.int32)
    image, boxes = 0.1 * rng.standard_normal((side, side, 1), np.float32), np.zeros((most, 4), np.float32)
    for i, corner in enumerate(rng.permutation(4)[: rng.integers(1, 4)]):  # one in a quarter of the image, at most
        (h, w), label[i] = rng.integers(6, 15, 2), rng.integers(2)
        y, x = np.array(divmod(corner, 2)) * side // 2 + 1
        image[y : y + h, x : x + w] += 1 - 2 * label[i]
        boxes[i] = np.array([y, x, y + h, x + w]) / side
    return {"image": image, "boxes": boxes, "label": label, "crowd": np.zeros(most, bool)}


def scenes(B):
    parts = [scene(seed) for seed in range(B)]
    return {name: np.stack([x[name] for x in parts]) for name in parts[0]}


SMALL = DetrHead(queries=6, layers=2, groups=2, denoising=1)


@functools.cache
def small():
    config = ViTConfig(patch=8, width=32, depth=1, heads=2, mlp=64, pool="mean")
    return split(Detr(config, SMALL, image_size=(32, 32), channels=1, classes=2, rngs=nnx.Rngs(0)))


def total(params, data, keys):
    return query_loss(merge(small()[0], params), data, SMALL, keys).mean()
