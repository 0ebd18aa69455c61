"""Targets, losses and segments of mask predictions. What transformers has too is compared in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit.config import EomtHead, ViTConfig
from vit.models.eomt import Eomt, annealed
from vit.models.vit import merge, split
from vit.tasks import masks
from vit.tasks.masks import NOTHING, UNKNOWN, corners, eomt_loss, losses, sampled

# Compiled as a whole: quicker than piece by piece.
targets = jax.jit(masks.targets, static_argnums=(1, 2))
panoptic = jax.jit(masks.panoptic, static_argnums=1, static_argnames="stuff")
instances = jax.jit(masks.instances, static_argnums=1)

K = 4
HEAD = EomtHead(queries=6, points=300, blocks=2, upscale=1)


def head(output="semantic", **more):
    return EomtHead(**{"queries": 6, "points": 300, "blocks": 2, "upscale": 1, "output": output, **more})


def image():
    """Class 0 on the left, two objects of class 2 and one of class 3 on the right, a strip of void."""
    label, instance = np.zeros((8, 12), np.uint8), np.zeros((8, 12), np.uint16)
    label[:, 6:], instance[:4, 6:], instance[4:, 6:] = 2, 7, 300
    label[6:, 9:], instance[6:, 9:] = 3, 2
    label[:, 5] = 255
    return label, instance


def batch(*images):
    return {name: jnp.stack([x[i] for x in images]) for i, name in enumerate(("label", "instance"))}


def found(wanted, label):
    """Class → the sets of pixels of its targets, by area."""
    places, classes, valid = (np.asarray(x[0]) for x in wanted)
    assert set(np.unique(places)) <= {NOTHING, UNKNOWN, *np.flatnonzero(valid)}
    areas = [(places == m).sum() for m in np.flatnonzero(valid)]
    assert areas == sorted(areas, reverse=True)
    return sorted((int(classes[m]), int((places == m).sum())) for m in np.flatnonzero(valid))


@pytest.mark.parametrize(
    ("output", "wanted", "nothing"),
    [
        ("semantic", [(0, 40), (2, 42), (3, 6)], 0),
        ("panoptic", [(0, 40), (2, 18), (2, 24), (3, 6)], 0),
        ("instance", [(2, 18), (2, 24), (3, 6)], 40),
    ],
)
def test_targets(output, wanted, nothing):
    label, instance = image()
    got = targets(batch((label, instance)), head(output), K)
    assert got.classes.shape == (1, K if output == "semantic" else 6)
    assert found(got, label) == wanted
    places = np.asarray(got.places[0])
    np.testing.assert_array_equal(places == UNKNOWN, label == 255)
    assert (places == NOTHING).sum() == nothing


def test_of_too_many_targets_the_largest_stay_and_the_others_count_for_nothing():
    label, instance = image()
    got = targets(batch((label, instance)), head("panoptic", queries=2), K)
    assert found(got, label) == [(0, 40), (2, 24)]
    assert (np.asarray(got.places) == UNKNOWN).sum() == 8 + 18 + 6


def test_without_objects_panoptic_targets_are_the_classes():
    label, _ = image()
    got = targets({"label": jnp.asarray(label)[None]}, head("panoptic"), K)
    assert found(got, label) == [(0, 40), (2, 42), (3, 6)]


def test_points_between_pixels():
    x = jnp.asarray([[[1.0, 2.0], [3.0, 5.0]]])
    points = jnp.asarray([[[0.25, 0.25], [0.25, 0.75], [0.5, 0.5], [0.75, 0.5], [0.0, 0.25]]])
    np.testing.assert_allclose(sampled(x, points), [[1, 2, 2.75, 4, 0.5]])  # the last one is half outside
    where, weight = corners(points[0, 2], (2, 2))
    assert where.tolist() == [0, 1, 2, 3]
    assert weight.tolist() == [0.25] * 4


@jax.jit
def run(p, earlier, wanted, keys):
    return losses(p, [earlier], wanted, HEAD, keys)


def keys(B=2):
    return jax.random.split(jax.random.key(0), B)


def prediction(seed, B=2, Q=6):
    rng = np.random.default_rng(seed)
    logits = {"masks": 3 * rng.standard_normal((B, Q, 4, 6)), "classes": rng.standard_normal((B, Q, K + 1))}
    return {name: jnp.asarray(x, jnp.float32) for name, x in logits.items()}


def perfect(wanted, scale=6.0):
    """What a model that knows the answer says, its queries in another order than the targets."""
    B, M = wanted.classes.shape
    room = 6 - M
    there = jnp.stack([wanted.places == m for m in range(M)], axis=1)
    named = jax.nn.one_hot(jnp.where(wanted.valid, wanted.classes, K), K + 1)
    logits = {"masks": jnp.pad(there, ((0, 0), (room, 0), (0, 0), (0, 0))), "classes": named}
    logits["classes"] = jnp.concatenate([jax.nn.one_hot(jnp.full((B, room), K), K + 1), named], axis=1)
    return {"masks": scale * (2.0 * logits["masks"] - 1)[:, ::-1], "classes": scale * logits["classes"][:, ::-1]}


@pytest.mark.parametrize("output", ["semantic", "panoptic", "instance"])
def test_who_knows_the_answer_has_hardly_a_loss(output):
    wanted = targets(batch(image(), image()), head(output), K)
    first = perfect(wanted)
    wrong = {"masks": first["masks"][:, ::-1], "classes": first["classes"]}  # the right masks with other classes
    parts = run(first, wrong, wanted, keys())  # the earlier prediction is first
    assert all(x.shape == (2, 2) for x in parts.values())
    assert parts["classes"][:, 1].max() < 0.02
    assert parts["masks"][:, 1].max() < 1  # most points are at a mask's edge, where the truth is between 0 and 1
    assert parts["dice"][:, 1].max() < 0.3
    assert (parts["classes"] + parts["masks"])[:, 0].min() > 1.2


def test_what_is_predicted_in_void_is_nobodys_business():
    label, instance = image()
    label[:, 4:8] = 255
    wanted = targets(batch((label, instance)), HEAD, K)
    first = perfect(wanted)
    other = {**first, "masks": first["masks"].at[..., 5:7].set(-first["masks"][..., 5:7])}  # more than a pixel from its border
    points = jax.random.uniform(jax.random.key(0), (6, 500, 2))
    inside = jnp.asarray(jax.tree.map(lambda x: x[0], wanted).places)
    for a, b in zip(*(masks.mask_losses(x["masks"][0], inside, points) for x in (first, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    whole = jnp.full_like(inside, UNKNOWN)
    cross, dice = masks.mask_losses(first["masks"][0], whole, points)
    assert not cross.any()
    assert not dice.any()


def test_an_examples_loss_does_not_depend_on_its_neighbours():
    label, instance = image()
    void = np.full_like(label, 255)
    wanted = targets(batch((label, instance), (void, instance)), head("panoptic"), K)
    p, q = prediction(0), prediction(1)
    together = run(p, q, wanted, keys())
    turned = run(*jax.tree.map(lambda x: x[::-1], (p, q, wanted)), keys()[::-1])
    twins = run(*jax.tree.map(lambda x: x[jnp.array([1, 1])], (p, q, wanted)), keys()[jnp.array([1, 1])])
    for name, x in together.items():
        np.testing.assert_allclose(turned[name][::-1], x, rtol=1e-5)
        np.testing.assert_allclose(twins[name], x[jnp.array([1, 1])], rtol=1e-5)
    assert not together["masks"][1].any()  # no targets: there every query should say "no object"
    assert not together["dice"][1].any()
    np.testing.assert_allclose(together["classes"][1, 1], -jax.nn.log_softmax(p["classes"][1])[:, -1].mean(), rtol=1e-5)


def test_the_loss_is_the_weighted_sum_over_all_predictions():
    wanted = targets(batch(image(), image()), head("panoptic"), K)
    other = head(class_weight=0.0, mask_weight=3.0, dice_weight=4.0)  # what the matching goes by, too
    p, q = prediction(0), prediction(1)
    total, parts = jax.jit(lambda p, q, w: (masks.loss(p, [q], w, other), losses(p, [q], w, other)))(p, q, wanted)
    np.testing.assert_allclose(total, (3 * parts["masks"] + 4 * parts["dice"]).sum(axis=1), rtol=1e-6)
    assert not np.array_equal(parts["classes"], run(p, q, wanted, keys())["classes"])


def test_points_are_mostly_where_a_mask_is_unsure():
    ramp = jnp.broadcast_to(jnp.linspace(-9, 9, 64), (2, 64, 64))
    points = masks.uncertain(ramp, 400, jax.random.key(0))
    near = jnp.abs(points[..., 1] - 0.5) < 0.15
    np.testing.assert_allclose(near.mean(axis=1), 0.75 + 0.25 * 0.3, atol=0.05)
    assert jnp.abs(points[0] - points[1]).max() > 0.1


def scene(seed):
    """An image of random blocks that a model can learn, its label and objects."""
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(0, 3, (2, 3)), np.ones((8, 8))).astype(np.uint8)
    instance = np.where(label == 2, 1 + np.arange(24)[None] // 8 + np.arange(16)[:, None] // 8 * 3, 0).astype(np.uint16)
    return np.eye(3, dtype=np.float32)[label] + 0.1 * rng.standard_normal((16, 24, 3), np.float32), label, instance


def small(output, depth=2, blocks=1):
    config = ViTConfig(patch=4, width=32, depth=depth, heads=2, mlp=64, pool="mean")
    return Eomt(config, head(output, blocks=blocks), image_size=(16, 24), channels=3, classes=3, rngs=nnx.Rngs(0))


def scenes(B):
    parts = [scene(seed) for seed in range(B)]
    return {name: np.stack([x[i] for x in parts]) for i, name in enumerate(("image", "label", "instance"))}


def test_evaluation_is_without_masked_attention():
    graph, params = split(small("semantic"))
    data = jax.tree.map(jnp.asarray, scenes(2))
    model = merge(graph, params)

    @jax.jit
    def both(x):
        plain = masks.loss(model(x["image"])[0], [], targets(x, head(blocks=1), 3), head(blocks=1))
        return eomt_loss(model, x, head(blocks=1), 3, None), plain

    np.testing.assert_allclose(*both(data), rtol=1e-5)
    assert not annealed(1.0, 2).any()


def test_pixels_beyond_the_image_count_for_nothing():
    rng = np.random.default_rng(0)
    p = {"masks": jnp.asarray(6 * rng.standard_normal((6, 8, 12)), jnp.float32), "classes": 9 * jnp.eye(6, K + 1)}
    inside = jnp.zeros((8, 12), bool).at[:5, :7].set(True)
    cut = {**p, "masks": p["masks"][:, :5, :7]}
    low = head(threshold=0.3)
    for way in (panoptic, instances):
        whole, part = jax.jit(lambda p, cut, way=way: (way(p, low, inside=inside), way(cut, low)))(p, cut)
        np.testing.assert_array_equal(whole["segments"][:5, :7], part["segments"])
        np.testing.assert_array_equal(whole["kept"], part["kept"])
        np.testing.assert_allclose(whole["scores"], part["scores"], rtol=1e-5)
        assert (whole["segments"][~inside] == -1).all()


def test_where_nobody_is_sure_there_is_no_segment():
    p = {"masks": jnp.ones((6, 8, 12)), "classes": jnp.zeros((6, K + 1)).at[:, K].set(9)}
    for way in (panoptic, instances):
        got = way(p, head())
        assert (got["segments"] == -1).all()
        assert not got["kept"].any()
