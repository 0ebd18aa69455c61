"""What frozen features know: nearest neighbours, or a linear classifier, on the vectors that a backbone gives for images."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from vit.data.sources import open_source
from vit.errors import UserError
from vit.tasks.classification import wilson
from vit.training.evaluate import Trained, over
from vit.training.state import make_feature_step
from vit.training.stop import Stop

NEIGHBOURS, TEMPERATURE = 20, 0.07
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of the linear classifier, the inverse of its L2 penalty
DRAWS = 5  # of the few images

Features = Float[np.ndarray, "N D"]
Labels = Int[np.ndarray, "N"]


def probe(model: Trained, kind: str, split: str, shots: Sequence[int], stop: Stop) -> dict[str, Any]:
    """The accuracy on a split of a `kind` ("knn" or "linear") of classifier on features of the training split.

    With `shots`, also from so many training images a class, the mean of five draws. Raises `UserError` for images that the
    model doesn't take, and for features that aren't finite.
    """
    if split == "train":
        raise UserError("a probe learns from the training split", "the command line", "give --split val or --split test")
    (known, labels), (asked, truth) = (_features(model, name, stop) for name in ("train", split))
    classify = {"knn": nearest, "linear": linear}[kind]
    right = classify(known, labels, asked) == truth
    figures: dict[str, Any] = {"probe": kind, "model": str(model.where), "step": model.step}
    figures |= {"dataset": model.meta["data"]["dataset"], "split": split}
    figures |= {"train_examples": len(labels), "examples": len(truth), "top1": float(right.mean())}
    figures["top1_ci95"] = list(wilson(figures["top1"], len(truth)))
    few = {str(n): [_few(classify, n, draw, known, labels, asked, truth) for draw in range(DRAWS)] for n in shots}
    figures["few_shot"] = {
        n: {"mean": float(np.mean(top1)), "std": float(np.std(top1, ddof=1)), "top1": top1} for n, top1 in few.items()
    }
    return figures


def nearest(known: Features, labels: Labels, asked: Features, k: int = NEIGHBOURS) -> Labels:
    """Each vector's class by a vote of its k neighbours by cosine, weighted by exp(cosine / 0.07), as DINO evaluates.

    arXiv 2104.14294, appendix; on the device, some vectors at a time.
    """
    known, asked = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (known, asked))
    k, classes, rows = min(k, len(known)), int(labels.max()) + 1, max(1, min(len(asked), 2**26 // len(known)))

    @jax.jit
    def vote(known: Any, labels: Any, asked: Any) -> Any:
        cosine, who = jax.lax.top_k(jnp.matmul(asked, known.T, precision="highest"), k)
        votes = jnp.zeros((len(asked), classes)).at[jnp.arange(len(asked))[:, None], labels[who]]
        return votes.add(jnp.exp((cosine - 1) / TEMPERATURE)).argmax(axis=1)

    given = functools.partial(vote, jnp.asarray(known), jnp.asarray(labels))
    padded = np.concatenate([asked, np.zeros((-len(asked) % rows, asked.shape[1]), asked.dtype)])
    return np.concatenate([given(part) for part in np.split(padded, len(padded) // rows)])[: len(asked)]


def linear(known: Features, labels: Labels, asked: Features) -> Labels:
    """Each vector's class by scikit-learn's logistic regression on features of mean 0 and deviation 1.

    The penalty is the one of five that does best on a fifth of the training vectors, learnt from the others; with fewer than
    5 of some class it is scikit-learn's default.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fitted(strength: float, features: Features, labels: Labels) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # 1,000 iterations are near enough
            classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
            return classifier.fit(features, labels)

    if len(np.unique(labels)) == 1:
        return np.full(len(asked), labels[0])
    strength = 1.0
    if np.unique(labels, return_counts=True)[1].min() >= 5:
        parts: Any = train_test_split(known, labels, test_size=0.2, stratify=labels, random_state=0)
        here, there, own, others = parts
        strength = max(STRENGTHS, key=lambda c: fitted(c, here, own).score(there, others))
    return fitted(strength, known, labels).predict(asked)


def _few(
    classify: Callable[..., Labels], n: int, draw: int, known: Features, labels: Labels, asked: Features, truth: Labels
) -> float:
    """Accuracy from n training images a class, or all of a class that has fewer."""
    order = np.random.default_rng((draw, n)).permutation(len(labels))
    chosen = np.concatenate([order[labels[order] == label][:n] for label in np.unique(labels)])
    options = {"k": min(n, NEIGHBOURS)} if classify is nearest else {}
    return float((classify(known[chosen], labels[chosen], asked, **options) == truth).mean())


def _features(model: Trained, split: str, stop: Stop) -> tuple[Features, Labels]:
    source = open_source(model.config.data, split)
    channels, wanted = source[0]["image"].shape[-1], model.task.shape["channels"]
    if channels != wanted:
        what = f"the data has images of {channels} channels, the model takes {wanted}"
        raise UserError(what, str(model.where), "give the data set that it was trained on, or --weights with --data.dir")
    batches = list(over(model, source, split, make_feature_step, stop))
    features, labels = (np.concatenate([batch[name] for batch in batches]) for name in ("outputs", "label"))
    features = features.astype(np.float32)
    if not np.isfinite(features).all():
        raise UserError("the features aren't finite", str(model.where), "give weights that aren't damaged")
    return features, labels


def few(text: str) -> list[int]:
    """`1,5,10` as numbers. Raises `UserError` for anything else."""
    parts = text.replace(",", " ").split()
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"--few-shot can't be {text!r:.40}", "the command line", "give images a class, as --few-shot 1,5,10")
    return [int(part) for part in parts]
