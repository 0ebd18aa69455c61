"""Attention rollout against a plain NumPy loop, on random weights and on real models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit
from tests.models.test_vit import SMALL, images, made, run
from tests.report.test_scores import ODD, assert_drawn
from vit.report import attention
from vit.training.sharding import make_mesh


def by_hand(blocks):
    """One image's blocks (heads, N, N) → R, token by token."""
    N = blocks[0].shape[-1]
    R = np.eye(N)
    for weights in blocks:
        A = np.zeros((N, N))
        for i in range(N):
            for j in range(N):
                A[i, j] = sum(float(w[i, j]) for w in weights) / len(weights) / 2 + (0.5 if i == j else 0)
            A[i] /= A[i].sum()
        R = A @ R
    return R


def test_rollout_is_the_formula():
    rng = np.random.default_rng(0)
    blocks = [rng.dirichlet(np.ones(6), size=(2, 3, 6)) for _ in range(4)]
    blocks[1][0, :, 2] = 0  # masked: its row of A is then the identity's
    got = attention.rollout(blocks)
    for b in range(2):
        np.testing.assert_allclose(got[b], by_hand([w[b] for w in blocks]), atol=1e-6)
    np.testing.assert_allclose(got.sum(axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("pool", ["token", "mean", "map"])
def test_the_patches_of_the_pooled_vector_of_a_model(pool, remat):
    graph, params = made("Ti/4", **SMALL, image_size=8, classes=3, pool=pool, remat=remat)
    _, out = run(graph, params, images(2, 8, 12, 3), attention=True)
    everything, last = attention.maps(pool, out)
    assert everything.shape == last.shape == (2, 2, 3)
    for b in range(2):
        blocks = [np.asarray(w[b], np.float64) for w in out["attention"]]
        for got, tokens in ((everything[b], by_hand(blocks)), (last[b], blocks[-1].mean(axis=0))):
            if pool == "token":
                wanted = tokens[0][1:]
            elif pool == "mean":
                wanted = sum(tokens[i] for i in range(6)) / 6
            else:
                query = np.asarray(out["pool_attention"][b], np.float64).mean(axis=0)
                wanted = sum(query[i] * tokens[i] for i in range(6))
            np.testing.assert_allclose(got, wanted.reshape(2, 3), atol=1e-6)
    if pool != "token":
        np.testing.assert_allclose(everything.sum(axis=(1, 2)), 1, atol=1e-6)


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("shape", [(8, 8, 1), (64, 96, 3)])
def test_the_picture(tmp_path, shape, count):
    rng = np.random.default_rng(1)
    everything, last = rng.random((2, count, 2, 3))
    last[0] = 0.5  # even
    label, guess = rng.integers(0, 10, (2, count))
    image = rng.integers(0, 255, (count, *shape), dtype=np.uint8)
    seen = {"image": image, "label": label, "guess": guess, "rollout": everything, "last": last}
    attention.picture(tmp_path / "attention.png", seen, ODD)
    assert_drawn(tmp_path / "attention.png")


class Task:
    """A classifier of 10 classes by the mean of the tokens."""

    class_names, model = ODD, vit.ViTConfig(pool="mean")

    def __init__(self):
        self.graph, self.params = made("Ti/4", **SMALL, image_size=8, classes=10, pool="mean")


@pytest.mark.parametrize("count", [3, 12])
def test_it_watches_the_models_own_predictions(count):
    task, rng = Task(), np.random.default_rng(2)
    source = [{"image": rng.integers(0, 255, (8, 8, 3), dtype=np.uint8), "label": i % 10, "id": i} for i in range(count)]

    def prepare(batch, keys):
        return {**batch, "image": batch["image"] / 255 - 0.5}

    seen = attention.watch(task, prepare, source, make_mesh(jax.devices()[:2]))(task.params)
    first = source[:8]
    pixels = jnp.stack([jnp.asarray(e["image"]) for e in first]) / 255 - 0.5
    logits, out = run(task.graph, task.params, pixels, attention=True)
    np.testing.assert_array_equal(seen["image"], [e["image"] for e in first])
    np.testing.assert_array_equal(seen["guess"], logits.argmax(axis=1))
    np.testing.assert_array_equal(seen["label"], range(len(first)))
    everything, last = attention.maps("mean", out)
    np.testing.assert_allclose(seen["rollout"], everything, atol=1e-5)
    np.testing.assert_allclose(seen["last"], last, atol=1e-5)
