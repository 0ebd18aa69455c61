"""What the pictures of a classifier's scores show, against NumPy and scikit-learn, and that odd inputs can be drawn."""

import itertools

import numpy as np
import pytest
from matplotlib.image import imread
from sklearn.metrics import confusion_matrix, precision_score, recall_score

from tests.conftest import colours
from vit.config import ClassificationConfig, ViTConfig
from vit.report import attention, classification, counts, pictures, scores
from vit.tasks.classification import BINS, Classification

ODD = ["a$b$", "<script>", "Ünïcode 猫", "x" * 90, "two\nlines", "_under", r"back\slash $\frac", "", "{}", "%s"]


def three_classes():
    data = {"class_names": list("abc"), "image_size": (16, 16), "channels": 1}
    return Classification(ClassificationConfig(), ViTConfig(), data)


def softmax(rng, B, K):
    logits = 3 * rng.normal(size=(B, K))
    p = np.exp(logits)
    return p / p.sum(axis=1, keepdims=True)


def assert_drawn(path):
    picture = imread(path)[..., :3]
    assert picture.std() > 0.03
    assert colours(picture) > 15
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (border > 0.9).mean() > 0.6  # texts aren't cut off
    return picture


@pytest.fixture
def drawn(monkeypatch):
    """The figures themselves, as they are saved."""
    kept = []
    for module in (scores, pictures, counts):
        monkeypatch.setattr(module, "save", lambda figure, path: kept.append(figure))
    return kept


def test_matrix_and_classes_are_scikit_learns():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 7, 300), rng.integers(0, 7, 300)
    truth[truth == 3] = 4  # a class without an example
    predicted[predicted == 5] = 0  # one that's never predicted
    matrix = scores.confusion_matrix(truth, predicted, 7)
    np.testing.assert_array_equal(matrix, confusion_matrix(truth, predicted, labels=range(7)))
    seen = scores.per_class(matrix)
    told = {"labels": range(7), "average": None, "zero_division": np.nan}
    np.testing.assert_allclose(seen.precision, precision_score(truth, predicted, **told))
    np.testing.assert_allclose(seen.accuracy, recall_score(truth, predicted, **told))
    for k in range(7):
        wrong = predicted[(truth == k) & (predicted != k)]
        assert seen.mistaken_for[k] == (np.bincount(wrong).argmax() if len(wrong) else -1)


def test_the_most_confused_pairs():
    matrix = np.array([[9, 1, 0], [4, 1, 5], [0, 0, 7]])
    pairs = scores.most_confused(matrix, 2)
    assert [tuple(pair) for pair in pairs] == [(1, 2, 5, 0.5), (1, 0, 4, 0.4)]
    assert scores.most_confused(np.eye(3, dtype=int), 5) == []


def test_the_worst_examples_are_those_of_the_highest_loss():
    rng = np.random.default_rng(1)
    p, truth = softmax(rng, 50, 4), rng.integers(0, 4, 50)
    loss = np.array([-np.log(p[i, truth[i]]) for i in range(50)])
    np.testing.assert_allclose(scores.losses(p, truth), loss)
    np.testing.assert_array_equal(scores.worst(scores.losses(p, truth), 8), np.argsort(loss)[::-1][:8])
    assert np.isfinite(scores.losses(np.array([[1.0, 0.0]]), np.array([1]))).all()


def test_reliability_is_numpys_and_its_bars_are_drawn(drawn):
    rng = np.random.default_rng(2)
    task = three_classes()
    logits, truth = 2 * rng.normal(size=(400, 3)), rng.integers(0, 3, 400)
    sums = task.metrics(logits, {"label": truth})
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    sure, hit = p.max(axis=1), p.argmax(axis=1) == truth
    edges = np.linspace(0, 1, BINS + 1)
    middle, mean, accuracy = scores.reliability(*(sums[f"bin_{name}"] for name in ("count", "confidence", "hits")))
    error = 0
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        here = (sure > low) & (sure <= high)
        assert middle[i] == pytest.approx((low + high) / 2)
        assert mean[i] == pytest.approx(sure[here].mean() if here.any() else 0)
        assert accuracy[i] == pytest.approx(hit[here].mean() if here.any() else 0)
        error += here.mean() * abs(mean[i] - accuracy[i])
    scores.calibration(None, sums["bin_count"], sums["bin_confidence"], sums["bin_hits"], "some set")
    (figure,) = drawn
    assert figure._suptitle.get_text() == f"some set: calibration error {error:.1%}"
    heights = [bar.get_height() for bar in figure.axes[0].patches[:BINS]]
    np.testing.assert_allclose(heights, accuracy)
    np.testing.assert_array_equal([bar.get_height() for bar in figure.axes[1].patches], sums["bin_count"])


@pytest.mark.parametrize("K", [2, 10, 30, 41, 1000])
def test_any_number_of_classes(tmp_path, K):
    rng = np.random.default_rng(3)
    names = [f"{ODD[i % 10]} {i}" for i in range(K)]
    truth, predicted = rng.integers(0, K, 500) // 2 * 2 % K, rng.integers(0, K, 500)
    scores.confusion(tmp_path / "c.png", scores.confusion_matrix(truth, predicted, K), names, "the title $ of it")
    counts.labels(tmp_path / "l.png", {"train": truth, "val": predicted, "test": truth[:1]}, names)
    assert_drawn(tmp_path / "c.png")
    assert_drawn(tmp_path / "l.png")


def test_many_classes_get_a_list_of_pairs(drawn):
    matrix = np.diag(np.full(50, 3))
    matrix[7, 9] = 5
    scores.confusion(None, matrix, [f"n{i}" for i in range(50)], "title")
    assert "5 (62%)  n7 → n9" in drawn[0].axes[1].texts[0].get_text()
    scores.confusion(None, matrix[:3, :3], list("abc"), "title")
    assert {t.get_text() for t in drawn[1].axes[0].texts} == {"3"}


def test_the_labels_of_a_split(drawn):
    truth = np.array([0] * 5 + [2] * 3 + [3] * 3)
    assert counts.extremes(np.bincount(truth, minlength=5), list("abcde")) == (
        "rarest “c” and 1 more: 3\nmost frequent “a”: 5; 2 classes have none"
    )
    assert counts.extremes(np.array([4, 4]), ["x", "y"]) == "4 of each class"
    counts.labels(None, {"train": truth, "val": np.array([], int)}, list("abcde"))
    train, val = drawn[0].axes
    assert [bar.get_height() for bar in train.patches] == [5, 0, 3, 3, 0]
    assert train.get_title().startswith("train: 11 examples\n")
    assert val.get_title() == "val: 0 examples\nno examples"


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 20, 3), (224, 300, 3), (9, 9, 4)])
@pytest.mark.parametrize("count", [1, 8])
def test_predictions_of_any_images(tmp_path, drawn, shape, count, monkeypatch):
    rng = np.random.default_rng(4)
    images = [rng.integers(0, 255, shape, dtype=np.uint8) for _ in range(count)]
    p, truth = softmax(rng, count, 10), rng.integers(0, 10, count)
    pictures.predictions(None, images, truth, p, ODD, "first", scores.losses(p, truth))
    (ax,) = drawn[0].axes
    assert len(ax.images) == len(ax.texts) == count
    for i, (image, caption) in enumerate(zip(ax.images, ax.texts, strict=True)):
        right = p[i].argmax() == truth[i]
        assert caption.get_color() == (pictures.BLUE if right else pictures.ORANGE)
        assert f"{p[i].max():.0%}" in caption.get_text()
        assert caption.get_text().endswith(f"loss {-np.log(p[i, truth[i]]):.2f}")
        # The image in its own shape, below the middle of its caption.
        pixels = image.get_array()
        assert pixels.shape[:2] == shape[:2]
        np.testing.assert_array_equal(pixels, images[i] if shape[2] == 3 else images[i].mean(axis=-1))
        left, end, bottom, top = image.get_extent()
        np.testing.assert_allclose((end - left) / (top - bottom), shape[1] / shape[0])
        np.testing.assert_allclose(caption.get_position()[0], (left + end) / 2)
        assert top < caption.get_position()[1] < drawn[0].get_figheight()
    monkeypatch.undo()
    pictures.predictions(tmp_path / "p.png", images, truth, p, ODD, "first")
    assert_drawn(tmp_path / "p.png")


def test_an_evaluations_pictures(tmp_path, monkeypatch):
    rng, task = np.random.default_rng(5), three_classes()
    source = [{"image": np.full((8, 8, 1), i, np.uint8)} for i in range(30)]
    examples = {"outputs": rng.normal(size=(30, 3)), "label": rng.integers(0, 3, 30), "id": np.arange(100, 130)}
    figures = task.summary(task.metrics(examples["outputs"], examples))
    asked = {}
    monkeypatch.setattr(pictures, "predictions", lambda path, images, *rest: asked.update({path.name: (images, *rest)}))
    monkeypatch.setattr(attention, "picture", lambda path, seen, names: asked.update({path.name: seen}))
    classification.validation(tmp_path, task, {"examples": examples, "figures": figures, "watched": 7}, source, "digits val")
    assert asked.pop("attention.png") == 7
    assert asked.keys() == {"val_predictions.png"}
    assert not list(tmp_path.iterdir())
    assert [int(image[0, 0, 0]) for image in asked["val_predictions.png"][0]] == list(range(classification.SHOWN))
    classification.evaluation(tmp_path, task, examples, figures, source, "digits val")
    assert {p.name for p in tmp_path.iterdir()} == {"confusion.png", "calibration.png"}
    images, truth, p, _, _, losses = asked["top_losses.png"]
    order = [int(image[0, 0, 0]) for image in images]
    logp = examples["outputs"] - np.log(np.exp(examples["outputs"]).sum(axis=1, keepdims=True))
    expected = np.argsort([logp[i, examples["label"][i]] for i in range(30)])[: classification.SHOWN]
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_array_equal(truth, examples["label"][expected])
    np.testing.assert_allclose(p, np.exp(logp)[expected])
    assert np.all(np.diff(losses) <= 0)
