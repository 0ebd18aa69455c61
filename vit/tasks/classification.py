"""Image classification: one label an image, softmax cross-entropy.

A task builds the model, gives the training loss of each example, and turns outputs into figures. Figures are sums and
counts, so they add up over batches and hosts; `summary` divides at the end.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vit.config import ClassificationConfig, ViTConfig
from vit.models.layers import Keys
from vit.models.vit import ViT, flops
from vit.tasks.structure import Structured

Sums = dict[str, Any]  # NumPy numbers and arrays
BINS = 15  # of the expected calibration error


class Classification(Structured):
    """The classification task on a data set's classes.

    Args:
      config: label smoothing.
      model: the backbone's sizes.
      data: what the source says of itself: `class_names`, `image_size` (H, W), `channels`.
    """

    name, headline = "classification", "top1"

    def __init__(self, config: ClassificationConfig, model: ViTConfig, data: dict[str, Any]):
        self.config, self.model = config, model
        self.class_names: list[str] = data["class_names"]
        self.shape = {"image_size": tuple(data["image_size"]), "channels": data["channels"], "classes": len(self.class_names)}

    def build(self, rngs: nnx.Rngs) -> ViT:
        """A freshly initialised model."""
        return ViT(self.model, **self.shape, rngs=rngs)

    def flops(self, side: int = 0) -> int:
        """Operations of one image's forward pass, of an image shrunk to this side if it is given."""
        shape = {**self.shape, "image_size": (side, side)} if side else self.shape
        return flops(self.model, **shape)

    def loss(self, model: ViT, batch: dict[str, Array], keys: Keys | None) -> Float[Array, "B"]:
        """Cross-entropy of each example in nats, with label smoothing; of a mixed image, for both its labels by their share."""
        logits, _ = model(batch["image"], keys=keys)
        logp = jax.nn.log_softmax(logits)
        nll = -jnp.take_along_axis(logp, batch["label"][:, None], axis=1)[:, 0]
        if "partner" in batch:
            other = -jnp.take_along_axis(logp, batch["partner"][:, None], axis=1)[:, 0]
            nll = batch["share"] * nll + (1 - batch["share"]) * other
        return (1 - self.config.label_smoothing) * nll - self.config.label_smoothing * logp.mean(axis=1)

    def outputs(self, model: ViT, batch: dict[str, Array]) -> Float[Array, "B K"]:
        """What evaluation keeps of each example: its logits."""
        return model(batch["image"])[0]

    def probabilities(self, logits: Float[np.ndarray, "B K"]) -> Float[np.ndarray, "B K"]:
        """Softmax in float64, so that scikit-learn computes from the stored probabilities what `summary` says."""
        return np.exp(_log_softmax(logits))

    def kept(self, logits: Float[np.ndarray, "B K"], batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What is kept of each example until the end: `outputs`, `label` and `id`."""
        return {"outputs": logits, "label": batch["label"], "id": batch["id"]}

    def metrics(self, logits: Float[np.ndarray, "B K"], batch: dict[str, np.ndarray]) -> Sums:
        """Sums over examples, to be added up over batches; padding must have been removed."""
        labels = batch["label"]
        K, B, everyone = len(self.class_names), len(labels), np.arange(len(labels))
        logp = _log_softmax(logits)
        nll = -logp[everyone, labels]
        smooth = self.config.label_smoothing
        hit = logits.argmax(axis=1) == labels
        confidence = np.exp(logp.max(axis=1))
        bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
        sums = {
            "count": np.asarray(B),
            "nll": nll.sum(),
            "loss": ((1 - smooth) * nll - smooth * logp.mean(axis=1)).sum(),
            "hits": np.bincount(labels[hit], minlength=K),
            "class_count": np.bincount(labels, minlength=K),
            "bin_count": np.bincount(bins, minlength=BINS),
            "bin_confidence": np.bincount(bins, weights=confidence, minlength=BINS),
            "bin_hits": np.bincount(bins[hit], minlength=BINS),
        }
        if K > 5:
            # Of equal logits the higher class counts first, as scikit-learn has it.
            best = np.argsort(logits, axis=1, kind="stable")[:, -5:]
            sums["top5_hits"] = (best == labels[:, None]).any(axis=1).sum()
        return sums

    def summary(self, sums: Sums, examples: dict[str, np.ndarray] | None = None) -> dict[str, Any]:
        """Figures of the examples summed: scores and errors are fractions, losses nats an example.

        `ece` is the expected calibration error over 15 equal bins of the top probability (arXiv 1706.04599);
        `balanced_accuracy` the mean over the classes present; `top1_ci95` Wilson's interval.
        """
        n = int(sums["count"])
        present = sums["class_count"] > 0
        per_class = sums["hits"] / np.maximum(sums["class_count"], 1)
        top1 = float(sums["hits"].sum() / n)
        figures = {"examples": n, "top1": top1, "top1_ci95": list(wilson(top1, n))}
        if "top5_hits" in sums:
            figures["top5"] = float(sums["top5_hits"] / n)
        return figures | {
            "loss": float(sums["loss"] / n),
            "nll": float(sums["nll"] / n),
            "ece": float(np.abs(sums["bin_hits"] - sums["bin_confidence"]).sum() / n),
            "balanced_accuracy": float(per_class[present].mean()),
            "per_class_accuracy": {
                name: float(score) if here else None
                for name, score, here in zip(self.class_names, per_class, present, strict=True)
            },
        }

    def score(self, figures: dict[str, Any]) -> tuple[float, ...]:
        """What makes one checkpoint better than another: top-1, then the likelihood (small splits tie often)."""
        return figures["top1"], -figures["nll"]


def _log_softmax(logits: Float[np.ndarray, "B K"]) -> Float[np.ndarray, "B K"]:
    x = logits.astype(np.float64)
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def wilson(share: float, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's 95 % interval of a share seen in n trials."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
