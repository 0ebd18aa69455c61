"""Probes of frozen features against scikit-learn, and as a user starts them."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from tests.conftest import run
from tests.deploy.tiny import tiny_run
from tests.models.test_vit import run as run_model
from vit.config import FolderData
from vit.data.sources import open_source
from vit.training import probe as module
from vit.training.evaluate import open_run, over
from vit.training.probe import few, linear, nearest
from vit.training.state import make_feature_step
from vit.training.stop import Stop
from vit.weights import start


def clouds(seed, count, classes=5, width=12, spread=1.5):
    """Vectors around one centre a class."""
    centres = np.random.default_rng(9).normal(size=(classes, width))
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count).astype(np.int32)
    return (centres[labels] + spread * rng.normal(size=(count, width))).astype(np.float32), labels


@pytest.mark.parametrize("k", [1, 3, 20, 500])
def test_nearest_is_scikit_learns(k):
    known, labels = clouds(0, 300)
    asked, truth = clouds(1, 101)
    weights = "uniform" if k == 1 else lambda distance: np.exp(-distance / 0.07)
    theirs = KNeighborsClassifier(min(k, 300), metric="cosine", weights=weights, algorithm="brute").fit(known, labels)
    ours = nearest(known, labels, asked, k)
    np.testing.assert_array_equal(ours, theirs.predict(asked))
    assert (ours == truth).mean() > 0.5
    # A part at a time and all at once give the same, whatever the lengths of the vectors.
    alone = np.concatenate([nearest(known, labels, 3 * asked[i : i + 1], k) for i in range(20)])
    np.testing.assert_array_equal(alone, ours[:20])


def test_linear_is_logistic_regression_with_the_best_penalty():
    known, labels = clouds(0, 400, spread=3)
    asked, _ = clouds(1, 300, spread=3)
    scaler = StandardScaler().fit(known)
    fits = [LogisticRegression(C=c, max_iter=1000).fit(scaler.transform(known), labels) for c in module.STRENGTHS]
    ours = linear(known, labels, asked)
    same = [(ours == fit.predict(scaler.transform(asked))).all() for fit in fits]
    here, there, own, others = train_test_split(known, labels, test_size=0.2, stratify=labels, random_state=0)
    scores = []
    for c in module.STRENGTHS:
        part = StandardScaler().fit(here)
        fit = LogisticRegression(C=c, max_iter=1000).fit(part.transform(here), own)
        scores.append(fit.score(part.transform(there), others))
    assert len(set(scores)) > 1
    assert same[int(np.argmax(scores))]
    assert not all(same)
    # Too few of a class to choose by: scikit-learn's own penalty.
    some = np.concatenate([np.flatnonzero(labels == k)[: 4 if k == 2 else 20] for k in range(5)])
    plain = LogisticRegression(max_iter=1000).fit(StandardScaler().fit_transform(known[some]), labels[some])
    scaled = StandardScaler().fit(known[some]).transform(asked)
    np.testing.assert_array_equal(linear(known[some], labels[some], asked), plain.predict(scaled))
    assert (linear(known[labels == 3], labels[labels == 3], asked) == 3).all()


def test_few_shots_take_so_many_of_each_class():
    known, labels = clouds(0, 300)
    seen = []

    def classify(features, own, asked):
        seen.append((features, own))
        return np.zeros(len(asked), int)

    for draw in (0, 1, 0):
        module._few(classify, 4, draw, known, labels, known[:9], labels[:9])
    assert all((np.bincount(own) == 4).all() for _, own in seen)
    np.testing.assert_array_equal(seen[0][0], seen[2][0])
    assert not np.array_equal(seen[0][0], seen[1][0])
    rows = [np.flatnonzero((known == x).all(axis=1)) for x in seen[0][0]]
    np.testing.assert_array_equal(labels[np.concatenate(rows)], seen[0][1])


def test_numbers_of_images():
    assert few("") == []
    assert few("1,5,10") == few("1 5 10") == few("1, 5, 10") == [1, 5, 10]


def test_features_are_the_pooled_vectors_of_a_model(tmp_path):
    model = open_run(tiny_run(tmp_path / "run"), "last")
    source = open_source(model.config.data, "test")
    batches = list(over(model, source, "test", make_feature_step, Stop()))
    features = np.concatenate([batch["outputs"] for batch in batches])
    assert features.shape == (360, 16)
    images = np.stack([source[i]["image"] for i in range(5)]).astype(np.float32) / 255
    wanted = run_model(model.task.graph, model.params, jnp.asarray((images - 0.305) / 0.376))[1]["pooled"]
    np.testing.assert_allclose(features[:5], wanted, atol=1e-5)


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    """A folder of three classes that differ in brightness."""
    folder, rng = tmp_path_factory.mktemp("shades"), np.random.default_rng(0)
    for label, shade in (("dark", 30), ("grey", 120), ("light", 220)):
        (folder / label).mkdir()
        for i in range(40):
            pixels = np.clip(rng.normal(shade, 8, (11, 14, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def test_weights_as_a_model_of_a_folder(shades, tmp_path):
    model = start.frozen(str(tiny_run(tmp_path / "run")), FolderData(str(shades)))
    assert (model.config.data.size, model.config.data.mean) == (8, (0.305,))
    assert model.task.class_names == ["dark", "grey", "light"]
    assert model.params["head/kernel"].shape == (16, 3)
    assert model.params["patch_embed/proj/kernel"].shape == (2 * 2 * 3, 16)
    assert start.frozen(str(tmp_path / "run"), FolderData(str(shades)), 12).config.data.size == 12


def test_a_probe_of_a_run_and_one_of_its_weights_on_a_folder(trained, shades, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    out, _ = run("eval.py", "--workdir", workdir, "--probe", "linear", "--few-shot", "1,5")
    figures = json.loads((workdir / "probe-linear.json").read_text())
    assert (figures["examples"], figures["train_examples"], figures["split"]) == (360, 1293, "test")
    assert figures["top1"] > figures["few_shot"]["5"]["mean"]
    assert len(figures["few_shot"]["1"]["top1"]) == 5
    assert f"{figures['top1']:.2%}" in out
    run("eval.py", "--weights", workdir, "--data.dir", shades, "--probe", "knn", "--workdir", tmp_path / "figures")
    figures = json.loads((tmp_path / "figures" / "probe-knn.json").read_text())
    assert figures["top1"] > 0.9
    assert figures["few_shot"] == {}
