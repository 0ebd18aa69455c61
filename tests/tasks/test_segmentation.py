"""Figures of masks against scikit-learn and plain NumPy, the loss against a loop, and gradients that void leaves alone."""

import hypothesis
import hypothesis.strategies as some
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import ndimage
from sklearn.metrics import confusion_matrix, jaccard_score

from tests.models.test_vit import random_params, run
from vit.config import ConvHead, LinearHead, SegmentationConfig, ViTConfig
from vit.errors import UserError
from vit.models.vit import merge
from vit.tasks import make_task
from vit.tasks.segmentation import VOID, boundary, confusion

MODEL = ViTConfig(patch=8, width=16, depth=2, heads=2, mlp=32, pool="mean")
NAMES = ["background", "cat", "dog"]
DATA = {"dataset": "mine", "class_names": NAMES, "image_size": [16, 24], "channels": 3, "view": "whole"}


def task(head=None, view="whole", **settings):
    config = SegmentationConfig(head=head or ConvHead(width=8, levels=1, stride=4), **settings)
    return make_task(config, MODEL, {**DATA, "view": view})


def masks(seed, shape=(4, 20, 30), void=0.1):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 3, (shape[0], 4, 5)).repeat(5, axis=1).repeat(6, axis=2).astype(np.uint8)
    flips = rng.random(shape) < 0.1
    truth = np.where(rng.random(shape) < void, VOID, coarse).astype(np.uint8)
    return truth, np.where(flips, rng.integers(0, 3, shape), coarse).astype(np.uint8)


def batch(truth, sizes=None):
    sizes = np.array([truth.shape[1:]] * len(truth) if sizes is None else sizes, np.int32)
    return {"label": truth, "size": sizes, "content": sizes, "id": np.arange(len(truth), dtype=np.int32)}


def figures(truth, predicted, sizes=None, cuts=()):
    t, sums = task(), {}
    for part in np.split(np.arange(len(truth)), cuts):
        some_of = batch(truth[part], None if sizes is None else sizes[part])
        for name, x in t.metrics(predicted[part], some_of).items():
            sums[name] = sums.get(name, 0) + x
    return t.summary(sums)


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_scikit_learn_s(seed):
    truth, predicted = masks(seed)
    found, known = figures(truth, predicted), truth != VOID
    t, p = truth[known], predicted[known]
    assert found["miou"] == pytest.approx(jaccard_score(t, p, average="macro"), abs=1e-12)
    assert list(found["iou_per_class"].values()) == pytest.approx(jaccard_score(t, p, average=None).tolist(), abs=1e-12)
    assert found["pixel_accuracy"] == pytest.approx(np.mean(t == p), abs=1e-12)
    np.testing.assert_array_equal(confusion(truth.reshape(80, 30), predicted.reshape(80, 30), 3), confusion_matrix(t, p))


def test_sums_add_up_over_ragged_batches():
    truth, predicted = masks(0, (7, 20, 30))
    assert figures(truth, predicted) == figures(truth, predicted, cuts=(3, 6))


def test_what_lies_beyond_an_image_does_not_count():
    truth, predicted = masks(1)
    sizes = np.array([[20, 30], [11, 30], [20, 7], [1, 1]], np.int32)
    for one, (h, w) in zip(truth, sizes, strict=True):
        one[h:], one[:, w:] = VOID, VOID
    wild = predicted.copy()
    for one, (h, w) in zip(wild, sizes, strict=True):
        one[h:], one[:, w:] = 2, 1
    assert figures(truth, wild, sizes) == figures(truth, predicted, sizes)


def test_a_class_that_nobody_has_is_left_out_and_one_only_predicted_counts_zero():
    truth, predicted = np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 4), np.uint8)
    assert figures(truth, predicted)["iou_per_class"] == {"background": 1.0, "cat": None, "dog": None}
    predicted[0, 0] = 1
    found = figures(truth, predicted)
    assert found["iou_per_class"] == {"background": 0.75, "cat": 0.0, "dog": None}
    assert found["miou"] == 0.375
    nothing = figures(np.full((1, 4, 4), VOID, np.uint8), predicted)
    assert (nothing["pixels"], nothing["miou"], nothing["pixel_accuracy"], nothing["boundary_f"]) == (0, 0.0, 0.0, 0.0)


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(some.integers(0, 1000), some.sampled_from([(20, 30), (200, 300)]))
def test_boundaries_by_a_plain_count(seed, shape):
    rng = np.random.default_rng(seed)
    grown = lambda x: np.kron(x, np.ones((shape[0] // 5, shape[1] // 6), int)).astype(np.uint8)  # noqa: E731
    truth, predicted = grown(rng.integers(0, 3, (5, 6))), grown(rng.integers(0, 3, (5, 6)))
    truth[: shape[0] // 5, : shape[1] // 6] = VOID
    sums = boundary(truth, predicted, 3)
    predicted = np.where(truth == VOID, VOID, predicted)
    near = max(1.0, 0.0075 * np.hypot(*shape))
    cross = ndimage.generate_binary_structure(2, 1)
    for k in range(3):
        # the pixels of the class that erosion by a cross takes away, but for those at the image's border
        lines = [(x == k) & ~ndimage.binary_erosion(x == k, cross, border_value=1) for x in (predicted, truth)]
        assert (sums[1, k], sums[3, k]) == tuple(line.sum() for line in lines)
        if lines[0].any() and lines[1].any():
            far = [ndimage.distance_transform_edt(~line) for line in lines]
            assert sums[0, k] == np.sum(far[1][lines[0]] <= near)
            assert sums[2, k] == np.sum(far[0][lines[1]] <= near)


@pytest.mark.parametrize("dice", [0.0, 0.7])
def test_the_loss_by_a_plain_loop(dice):
    t = task(LinearHead(), dice=dice)
    graph, params = random_params(lambda: t.build(nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(3, 16, 24, 3)), jnp.float32)
    label = rng.integers(0, 2, (3, 16, 24)).astype(np.uint8)  # no dog
    label[0, :5], label[2] = VOID, VOID
    logits = run(graph, params, images)[0]
    logits = np.asarray(jax.image.resize(logits, (3, 16, 24, 3), "linear"), np.float64)
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    wanted = []
    for probability, truth in zip(p, label, strict=True):
        known = truth != VOID
        nll = [-np.log(probability[y, x, truth[y, x]]) for y, x in zip(*np.nonzero(known), strict=True)]
        scores = [
            2 * probability[truth == k, k].sum() / ((truth == k).sum() + probability[known, k].sum()) for k in set(truth[known])
        ]
        wanted.append(np.mean(nll) + dice * (1 - np.mean(scores)) if nll else 0.0)
    loss = jax.jit(lambda p, x, y: t.loss(merge(graph, p), {"image": x, "label": y}, None))(params, images, label)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5, atol=1e-6)


def test_void_pixels_move_nothing():
    t = task(dice=1.0)
    graph, params = random_params(lambda: t.build(nnx.Rngs(0)))
    image = jnp.ones((1, 16, 24, 3)) * jnp.arange(24)[:, None] / 24

    @jax.jit
    @jax.grad
    def gradient(p, y):
        return t.loss(merge(graph, p), {"image": image, "label": jnp.full((1, 16, 24), y, jnp.uint8)}, None).sum()

    assert all(not np.any(x) for x in gradient(params, VOID).values())
    assert any(np.any(x) for x in gradient(params, 1).values())


@pytest.mark.parametrize("view", ["whole", "sliding"])
def test_outputs_are_at_the_images_own_size(view):
    t = task(view=view)
    graph, params = random_params(lambda: t.build(nnx.Rngs(0)))
    shape, content = ((40, 50), [[40, 50], [17, 33]]) if view == "sliding" else ((16, 24), [[16, 24]] * 2)
    images = jax.random.normal(jax.random.key(0), (2, *shape, 3))
    sizes = jnp.asarray([[40, 50], [17, 33]], jnp.int32)
    seen = {"image": images, "label": jnp.zeros((2, 40, 50), jnp.uint8), "size": sizes, "content": jnp.asarray(content)}
    out = jax.jit(lambda params, seen: t.outputs(merge(graph, params), seen))(params, seen)
    assert out.shape == (2, 40, 50)
    assert out.dtype == jnp.uint8


def test_data_without_masks_is_refused():
    labels = {name: x for name, x in DATA.items() if name != "view"}
    with pytest.raises(UserError, match="needs masks"):
        make_task(SegmentationConfig(), MODEL, labels)
