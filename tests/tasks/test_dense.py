"""The dense head's assignment, loss and choice of boxes."""

import jax
import jax.numpy as jnp
import numpy as np

from vit.config import NOBODY, DenseHead
from vit.models.boxes import iou
from vit.models.detector import places
from vit.tasks.dense import FIT, SCORE, assigned, chosen, loss

SIZE = (64, 64)
WHERE, REACH = places(SIZE, (8, 16))
WHERE, REACH = WHERE / np.float32(64), REACH[:, None] / np.float32([64, 64])
PLACES = jnp.asarray(WHERE), jnp.asarray(REACH)
TRUTH = jnp.array([[0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75], [0.9, 0.9, 0.93, 0.92], [0.0, 0.6, 0.4, 1.0], [0, 0, 0, 0]])
LABEL, CROWD = jnp.array([2, 0, 1, 1, NOBODY]), jnp.array([False, False, False, True, False])


def some(seed, K=3):
    """Boxes around the places, some better than others, and probabilities."""
    rng = np.random.default_rng(seed)
    sides = rng.uniform(0.02, 0.35, (len(WHERE), 4)).astype(np.float32)
    boxes = np.concatenate([WHERE - sides[:, :2], WHERE + sides[:, 2:]], axis=1)
    return boxes, rng.uniform(0.01, 0.9, (len(WHERE), K)).astype(np.float32)


def by_hand(boxes, scores, most):
    """The same in loops: which box each place answers for (-1: none), and its fit."""
    overlap = np.asarray(iou(TRUTH, jnp.asarray(boxes)))
    owner, fit = np.full(len(boxes), -1), np.zeros(len(boxes))
    align = np.zeros(overlap.shape)
    wanted = {}
    for m in range(len(TRUTH)):
        if LABEL[m] == NOBODY or CROWD[m]:
            continue
        y0, x0, y1, x1 = map(float, TRUTH[m])
        near = [
            n
            for n, ((y, x), (ry, rx)) in enumerate(zip(WHERE, REACH, strict=True))
            if abs(y - (y0 + y1) / 2) < max((y1 - y0) / 2, ry) and abs(x - (x0 + x1) / 2) < max((x1 - x0) / 2, rx)
        ]
        align[m] = scores[:, LABEL[m]] ** SCORE * overlap[m] ** FIT
        wanted[m] = sorted(near, key=lambda n: -align[m, n])[:most]
    for n in range(len(boxes)):
        asking = [m for m in wanted if n in wanted[m]]
        if asking:
            owner[n] = max(asking, key=lambda m: overlap[m, n])
    for m in wanted:
        mine = np.flatnonzero(owner == m)
        if len(mine) and align[m, mine].max() > 0:
            fit[mine] = align[m, mine] / align[m, mine].max() * overlap[m, mine].max()
    return owner, fit


def test_assignment_is_that_of_loops():
    run = jax.jit(lambda boxes, scores: assigned(boxes, scores, *PLACES, TRUTH, LABEL, CROWD, 4))
    for seed in range(5):
        boxes, scores = some(seed)
        found, (owner, fit) = run(boxes, scores), by_hand(boxes, scores, 4)
        answers = owner >= 0
        np.testing.assert_array_equal(found.box[answers], owner[answers])
        np.testing.assert_allclose(found.fit, fit, atol=1e-5)
        assert set(owner[answers]) == {0, 1, 2}, "even a box smaller than the places' distance has some"


def test_crowds_neither_ask_nor_forbid():
    boxes, scores = some(0)
    found = jax.jit(lambda b, s: assigned(b, s, *PLACES, TRUTH, LABEL, CROWD, 4))(boxes, scores)
    inside = ((TRUTH[3, :2] <= WHERE) & (TRUTH[3, 2:] > WHERE)).all(axis=1)
    assert inside.any()
    answers = by_hand(boxes, scores, 4)[0] >= 0
    assert (inside & ~answers).any()
    np.testing.assert_array_equal(found.counts, ~inside | answers)
    logits = np.log(scores / (1 - scores))
    head = DenseHead(assigned=4)
    value = jax.jit(lambda c: loss(jnp.asarray(boxes), c, *PLACES, TRUTH, LABEL, CROWD, head))
    before = value(jnp.asarray(logits))
    logits[inside & ~answers] += 3
    np.testing.assert_allclose(value(jnp.asarray(logits)), before, rtol=1e-6)


def test_loss_falls_with_better_boxes_and_scores_and_is_finite_without_boxes():
    head, nobody = DenseHead(), jnp.full(5, NOBODY)
    value = jax.jit(jax.value_and_grad(lambda b, c, label: loss(b, c, *PLACES, TRUTH, label, CROWD, head), (0, 1)))
    boxes, scores = map(jnp.asarray, some(1))
    logits = jnp.log(scores / (1 - scores))
    losses = []
    for _ in range(60):
        now, (db, dc) = value(boxes, logits, LABEL)
        losses.append(float(now))
        boxes, logits = boxes - 0.02 * db, logits - 2.0 * dc
    assert losses[-1] < 0.5 * losses[0]
    empty, gradients = value(boxes, logits, nobody)
    assert np.isfinite(empty)
    assert all(np.isfinite(g).all() for g in gradients)
    assert np.abs(gradients[0]).max() == 0  # no box to be like


def test_chosen_boxes():
    boxes = jnp.array([[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.49], [0.5, 0.5, 1.2, 1.2], [-0.5, 0, 0.5, 0.5]])
    logits = jnp.array([[2.0, -9], [1, -9], [-9, 0], [-9, 3]])
    choose = jax.jit(chosen, static_argnums=(2, 3, 4))
    found, scores, kinds = choose(boxes, logits, 0.6, 5, 300)
    assert kinds.shape == scores.shape == (5,)
    real = np.asarray(scores) > 0.01
    np.testing.assert_array_equal(kinds[real], [1, 0, 1])  # the second is covered by the first, of its class
    np.testing.assert_allclose(scores[real], jax.nn.sigmoid(jnp.array([3.0, 2.0, 0.0])), rtol=1e-6)
    np.testing.assert_array_equal(found[real], [[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]])
    found, scores, _ = choose(boxes, logits, 0.6, 20, 300)  # more than there can be
    assert found.shape == (20, 4)
    assert (np.asarray(scores[8:]) == 0).all()


def test_objects_with_many_answers_are_all_found():
    """Ten places answer for a box in training, so ten times as many boxes as are asked for go through NMS."""
    low = np.stack(np.meshgrid(np.arange(8), np.arange(8)), axis=-1).reshape(-1, 2) / 8
    boxes = jnp.asarray(np.repeat(np.concatenate([low, low + 0.1], axis=1), 10, axis=0), jnp.float32)
    logits = jnp.linspace(3, 1, 640)[:, None]
    scores = chosen(boxes, logits, 0.6, 100, 1000)[1]
    assert (np.asarray(scores) > 0).sum() == 64


def test_a_box_of_which_nothing_lies_in_the_image_is_none():
    boxes = jnp.array([[1.0, 0.2, 1.3, 0.5], [0.2, -0.5, 0.4, 0.0], [0.9, 0.9, 1.1, 1.1]])
    found, scores, _ = chosen(boxes, jnp.array([[3.0], [2.0], [1.0]]), 0.6, 3, 9)
    assert (np.asarray(scores) > 0).tolist() == [True, False, False]
    np.testing.assert_allclose(found[0], [0.9, 0.9, 1, 1], rtol=1e-6)
