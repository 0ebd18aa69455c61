"""Every figure against scikit-learn, SciPy or a NumPy few-liner, on random predictions."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, recall_score, top_k_accuracy_score

from tests.models.test_vit import images, random_params
from vit.config import ClassificationConfig, ViTConfig
from vit.models.vit import merge
from vit.tasks.classification import Classification, wilson


def make(classes, smoothing=0.0):
    data = {"class_names": [f"c{i}" for i in range(classes)], "image_size": (4, 4), "channels": 1}
    model = ViTConfig(patch=2, width=8, depth=1, heads=2, mlp=8)
    return Classification(ClassificationConfig(label_smoothing=smoothing), model, data)


def predictions(seed, n, classes, scale=2.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = (scale * rng.normal(size=(n, classes))).astype(np.float32)
    logits[np.arange(n), labels] += rng.random(n) * 3
    return logits, labels


def ece(probabilities, labels, bins=15):
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    total = 0.0
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    return total


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 300), st.integers(2, 12), st.sampled_from([0.1, 2.0, 30.0]))
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
def test_figures_are_scikit_learns(seed, n, classes, scale):
    logits, labels = predictions(seed, n, classes, scale)
    task = make(classes, smoothing=0.1)
    figures = task.summary(task.metrics(logits, {"label": labels}))
    probabilities = task.probabilities(logits)
    everything = list(range(classes))

    assert figures["examples"] == n
    assert figures["top1"] == pytest.approx(accuracy_score(labels, probabilities.argmax(axis=1)), abs=1e-12)
    assert figures["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, logits.argmax(axis=1)), abs=1e-12)
    if np.min(probabilities[np.arange(n), labels]) > np.finfo(float).eps:  # where scikit-learn clips
        assert figures["nll"] == pytest.approx(log_loss(labels, probabilities, labels=everything), abs=1e-9)
    assert figures["ece"] == pytest.approx(ece(probabilities, labels), abs=1e-9)
    assert ("top5" in figures) == (classes > 5)
    if classes > 5:
        top5 = top_k_accuracy_score(labels, probabilities, k=5, labels=everything)
        assert figures["top5"] == pytest.approx(top5, abs=1e-12)
    recalls = recall_score(labels, logits.argmax(axis=1), labels=everything, average=None, zero_division=np.nan)
    for got, wanted in zip(figures["per_class_accuracy"].values(), recalls, strict=True):
        assert got is None if np.isnan(wanted) else got == pytest.approx(wanted)


def test_ties_are_counted_as_scikit_learn_does():
    labels = np.arange(20) % 10
    logits = np.zeros((20, 10), np.float32)
    figures = make(10).summary(make(10).metrics(logits, {"label": labels}))
    assert figures["top5"] == top_k_accuracy_score(labels, logits, k=5)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_sums_add_up_over_batches(seed, sizes):
    logits, labels = predictions(seed, sum(sizes), 7)
    task = make(7)
    whole = task.summary(task.metrics(logits, {"label": labels}))
    cuts = np.cumsum(sizes)[:-1]
    parts = [
        task.metrics(part[0], {"label": part[1]}) for part in zip(np.split(logits, cuts), np.split(labels, cuts), strict=True)
    ]
    added = task.summary({name: sum(part[name] for part in parts) for name in parts[0]})
    assert added == {k: pytest.approx(v) for k, v in whole.items()}


def modelled(smoothing):
    """The task, a model whose head isn't zero, and a batch."""
    task = make(7, smoothing)
    graph, params = random_params(lambda: task.build(nnx.Rngs(0)))
    return task, merge(graph, params), {"image": images(50, 4, 4, 1), "label": jnp.arange(50) % 7}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_training_loss_is_optax_smoothed_cross_entropy_and_evaluations_loss(smoothing):
    task, model, batch = modelled(smoothing)
    logits, got = jax.jit(lambda batch: (task.outputs(model, batch), task.loss(model, batch, None)))(batch)
    targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], 7), smoothing)
    np.testing.assert_allclose(got, optax.softmax_cross_entropy(logits, targets), rtol=1e-5)
    figures = task.summary(task.metrics(np.asarray(logits), {"label": np.asarray(batch["label"])}))
    assert figures["loss"] == pytest.approx(float(got.mean()), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_mixed_image_is_asked_for_both_its_labels(smoothing):
    task, model, batch = modelled(smoothing)
    mixed = {**batch, "partner": jnp.roll(batch["label"], 1), "share": jnp.linspace(0, 1, 50)}
    targets = (
        mixed["share"] * jax.nn.one_hot(mixed["label"], 7).T + (1 - mixed["share"]) * jax.nn.one_hot(mixed["partner"], 7).T
    ).T
    logits, got = jax.jit(lambda batch: (task.outputs(model, batch), task.loss(model, batch, None)))(mixed)
    wanted = optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, smoothing))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


@given(st.integers(1, 20_000), st.floats(0, 1))
def test_interval_is_scipys_wilson(n, share):
    hits = round(share * n)
    wanted = binomtest(hits, n).proportion_ci(method="wilson")
    np.testing.assert_allclose(wilson(hits / n, n), wanted, atol=1e-9)


def test_the_better_score_has_more_hits_then_more_likelihood():
    task = make(3)
    assert task.score({"top1": 0.9, "nll": 1.0}) > task.score({"top1": 0.8, "nll": 0.1})
    assert task.score({"top1": 0.9, "nll": 0.2}) > task.score({"top1": 0.9, "nll": 0.3})
