"""Geometry of boxes, against NumPy, box by box."""

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings

from vit.models.boxes import area, centred, cornered, giou, iou, nms, paired_giou, paired_iou

corners = hnp.arrays(np.int32, (6, 2, 2), elements=st.integers(0, 64)).map(lambda points: points.astype(np.float32) / 64)
forms = jax.jit(lambda boxes: (centred(boxes), cornered(centred(boxes)), area(boxes)))
pairwise, paired = jax.jit(lambda a, b: (iou(a, b), giou(a, b))), jax.jit(lambda a, b: (paired_iou(a, b), paired_giou(a, b)))


def boxes_of(points):
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=-1)


def overlaps(a, b):
    """IoU and generalised IoU of two boxes, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(height, 0) * max(width, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    frame = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    ratio = common / union if union > 1e-7 else 0.0
    return ratio, ratio - ((frame - union) / frame if frame > 1e-7 else 0.0)


@settings(max_examples=50, deadline=None)
@given(corners, corners)
def test_overlaps(one, other):
    a, b = boxes_of(one), boxes_of(other)
    expected = np.array([[overlaps(x, y) for y in b] for x in a])
    for found, k in zip(pairwise(a, b), (0, 1), strict=True):
        np.testing.assert_allclose(found, expected[..., k], atol=1e-5)
    for found, k in zip(paired(a, b), (0, 1), strict=True):
        np.testing.assert_allclose(found, np.diagonal(expected[..., k]), atol=1e-5)


def test_overlaps_by_hand():
    a = jnp.array([[0.0, 0, 2, 2], [0, 0, 1, 1]])
    b = jnp.array([[1.0, 1, 3, 3], [0, 0, 1, 1], [5, 5, 6, 6]])
    np.testing.assert_allclose(iou(a, b), [[1 / 7, 1 / 4, 0], [0, 1, 0]], rtol=1e-6)
    np.testing.assert_allclose(giou(a, b), [[1 / 7 - 2 / 9, 1 / 4, -31 / 36], [-4 / 9, 1, -34 / 36]], rtol=1e-5)
    np.testing.assert_allclose(area(b), [4, 1, 1])
    nothing = jnp.zeros((1, 4))
    assert float(iou(nothing, nothing)[0, 0]) == 0
    gradient = jax.grad(lambda box: giou(box, nothing).sum())(nothing)
    assert np.isfinite(gradient).all()


@settings(max_examples=30, deadline=None)
@given(corners)
def test_other_forms_and_back(points):
    boxes = boxes_of(points)
    form, back, size = forms(boxes)
    np.testing.assert_allclose(back, boxes, atol=1e-6)
    y, x, height, width = np.moveaxis(np.asarray(form), -1, 0)
    np.testing.assert_allclose(height * width, size, atol=1e-6)
    np.testing.assert_allclose([y - height / 2, x + width / 2], [boxes[:, 0], boxes[:, 3]], atol=1e-6)


def greedy(boxes, scores, kinds, overlap):
    """Non-maximum suppression as it is usually written."""
    left, keep = list(np.argsort(-scores, kind="stable")), np.zeros(len(scores), bool)
    while left:
        best = left.pop(0)
        keep[best] = True
        left = [i for i in left if kinds[i] != kinds[best] or overlaps(boxes[best], boxes[i])[0] <= overlap]
    return keep


suppress = jax.jit(jax.vmap(nms, in_axes=(0, 0, 0, None)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.5, 0.7]))
def test_nms_is_the_greedy_one(seed, overlap):
    rng = np.random.default_rng(seed)
    centre, size = rng.uniform(0.3, 0.7, (2, 40, 2)), rng.uniform(0.1, 0.4, (2, 40, 2))
    boxes = np.concatenate([centre - size, centre + size], axis=-1).astype(np.float32)
    scores, kinds = rng.integers(0, 20, (2, 40)).astype(np.float32), rng.integers(0, 3, (2, 40))
    found = suppress(boxes, scores, kinds, overlap)
    for i in range(2):
        np.testing.assert_array_equal(found[i], greedy(boxes[i], scores[i], kinds[i], overlap))


def test_nms_of_a_long_chain():
    """Each box covers only the next one: every other is left, whatever the number of rounds."""
    at = 0.4 * np.arange(60, dtype=np.float32)[:, None]
    boxes = np.concatenate([at * 0, at, at * 0 + 1, at + 1], axis=1)
    keep = nms(jnp.asarray(boxes), jnp.linspace(1, 0.1, 60), jnp.zeros(60, int), 0.4)
    np.testing.assert_array_equal(keep, np.arange(60) % 2 == 0)
