"""Semantic segmentation: a class for every pixel, cross-entropy over those that are of a class.

A batch has `label` (B, H, W) of class numbers, 255 (void) where there is none, and in evaluation at the images' own sizes in
the upper left of a canvas; then also `size` and `content` (B, 2), see `vit.tasks.places`.
"""

from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from vit.config import VOID, SegmentationConfig, ViTConfig
from vit.models.layers import Keys
from vit.models.segmenter import Segmenter, segmenter_flops
from vit.models.vit import ViT
from vit.tasks import places
from vit.tasks.structure import Structured

NEAR = 0.0075  # of an image's diagonal: as close a boundary counts as hit (Csurka et al., BMVC 2013)

Sums = dict[str, Any]  # NumPy numbers and arrays


class Segmentation(Structured):
    """The segmentation task on a data set's classes.

    Args:
      config: the head.
      model: the backbone's sizes.
      data: what the source says of itself: `class_names`, `image_size` (H, W), `channels`, `view`.
    """

    name, headline = "segmentation", "miou"

    def __init__(self, config: SegmentationConfig, model: ViTConfig, data: dict[str, Any]):
        self.config, self.model, self.view = config, model, data["view"]
        self.head: Any = config.head
        self.class_names: list[str] = data["class_names"]
        self.shape = {"image_size": tuple(data["image_size"]), "channels": data["channels"], "classes": len(self.class_names)}

    def build(self, rngs: nnx.Rngs) -> ViT:
        """A freshly initialised model."""
        return Segmenter(self.model, self.head, **self.shape, rngs=rngs)

    def flops(self, side: int = 0) -> int:
        """Operations of one image's forward pass, of an image shrunk to this side if it is given."""
        shape = {**self.shape, "image_size": (side, side)} if side else self.shape
        return segmenter_flops(self.model, self.head, **shape)

    def loss(self, model: ViT, batch: dict[str, Array], keys: Keys | None) -> Float[Array, "B"]:
        """Mean cross-entropy of each example's pixels that aren't void, in nats; 0 where there are none. And the dice loss."""
        logits, label = model(batch["image"], keys=keys)[0], batch["label"][:, None]
        # Classes in front of places: sums over so few numbers side by side are slow on a CPU.
        logits = jnp.moveaxis(places.resize(logits, (label.shape[2], label.shape[3])), -1, 1)
        total = jax.nn.logsumexp(logits, axis=1, keepdims=True)
        known, true = label < logits.shape[1], label == jnp.arange(logits.shape[1], dtype=label.dtype)[:, None, None]
        nll = jnp.where(known, total, 0).sum(axis=(1, 2, 3)) - jnp.where(true, logits, 0).sum(axis=(1, 2, 3))
        loss = nll / jnp.maximum(known.sum(axis=(1, 2, 3)), 1)
        return loss + self.config.dice * dice(jnp.exp(logits - total), true) if self.config.dice else loss

    def outputs(self, model: ViT, batch: dict[str, Array]) -> UInt8[Array, "B H W"]:
        """What evaluation keeps of each example: the class of every pixel, at the image's own size, on the labels' canvas."""
        images, shown = batch["image"], self.shape["image_size"]
        if self.view == "sliding":
            return places.sliding(lambda x: self.logits(model, x), images, batch["size"], shown, self.config.overlap)
        return self.ids(self.logits(model, images), batch)

    def logits(self, model: Any, images: Float[Array, "B h w C"]) -> Float[Array, "B a b K"]:
        """Scores of the classes on a grid over images as the model is shown them."""
        return model(images)[0]

    def ids(self, logits: Float[Array, "B a b K"], batch: dict[str, Array]) -> UInt8[Array, "B H W"]:
        """Without sliding windows, the rest of `outputs`: `size` and `content` count of the batch, and the shape of `label`."""
        canvas = (batch["label"].shape[1], batch["label"].shape[2])
        return places.ids(logits, batch["size"], batch["content"], self.shape["image_size"], canvas)

    def metrics(self, predicted: UInt8[np.ndarray, "B H W"], batch: dict[str, np.ndarray]) -> Sums:
        """Sums over examples, to be added up over batches; padding must have been removed."""
        K, sums = len(self.class_names), {"count": len(predicted)}
        each = [(t[:h, :w], p[:h, :w]) for t, p, (h, w) in zip(batch["label"], predicted, batch["size"], strict=True)]
        return {
            **sums,
            "confusion": sum(confusion(*both, K) for both in each),
            "boundary": sum(boundary(*both, K) for both in each),
        }

    def kept(self, predicted: UInt8[np.ndarray, "B H W"], batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What is kept of each example until the end: `id`, `truth` and `predicted` as PNG files, and the mean `iou`."""
        each = [(t[:h, :w], p[:h, :w]) for t, p, (h, w) in zip(batch["label"], predicted, batch["size"], strict=True)]
        return {
            "id": batch["id"],
            "iou": np.array([_mean_iou(confusion(t, p, len(self.class_names))) for t, p in each]),
            "truth": np.array([_png(t) for t, _ in each], object),
            "predicted": np.array([_png(p) for _, p in each], object),
        }

    def summary(self, sums: Sums, examples: dict[str, np.ndarray] | None = None) -> dict[str, Any]:
        """Figures of the examples summed, all fractions.

        `miou` is the mean over the classes that truth or prediction have of intersection over union; `boundary_f` the mean of
        the classes' F-scores of their boundaries, of which those within 0.75 % of the diagonal count as hit.
        """
        matrix = sums["confusion"]
        iou, present = ious(matrix)
        total = matrix.sum()
        hit_p, all_p, hit_t, all_t = sums["boundary"]
        precision, recall = hit_p / np.maximum(all_p, 1), hit_t / np.maximum(all_t, 1)
        f = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        bounded = all_p + all_t > 0
        truth = matrix.sum(axis=1)
        found = np.diag(matrix) / np.maximum(truth, 1)
        return {
            "examples": int(sums["count"]),
            "miou": float(iou[present].mean()) if present.any() else 0.0,
            "pixel_accuracy": float(np.trace(matrix) / total) if total else 0.0,
            "mean_accuracy": float(found[truth > 0].mean()) if total else 0.0,
            "boundary_f": float(f[bounded].mean()) if bounded.any() else 0.0,
            "pixels": int(total),
            "iou_per_class": self._by_class(iou, present),
            "accuracy_per_class": self._by_class(found, truth > 0),
            "boundary_f_per_class": self._by_class(f, bounded),
        }

    def _by_class(self, values: Float[np.ndarray, "K"], known: np.ndarray) -> dict[str, float | None]:
        return {name: float(value) if here else None for name, value, here in zip(self.class_names, values, known, strict=True)}

    def score(self, figures: dict[str, Any]) -> tuple[float, ...]:
        """What makes one checkpoint better than another."""
        return figures["miou"], figures["pixel_accuracy"]


def dice(probability: Float[Array, "B K H W"], true: Bool[Array, "B K H W"]) -> Float[Array, "B"]:
    """1 - the mean over the classes that an image has of 2·|A ∩ B| / (|A| + |B|), probabilities counted as shares of pixels.

    `true` says of which class a pixel is; pixels of none count for nothing.
    """
    pixels, known = true.sum(axis=(2, 3)), true.any(axis=1, keepdims=True)
    both, guessed = (jnp.where(where, probability, 0).sum(axis=(2, 3)) for where in (true, known))
    score = jnp.sum(jnp.where(pixels > 0, 2 * both / jnp.maximum(pixels + guessed, 1), 0), axis=-1)
    has = jnp.sum(pixels > 0, axis=-1)
    return jnp.where(has > 0, 1 - score / jnp.maximum(has, 1), 0.0)


def confusion(truth: UInt8[np.ndarray, "H W"], predicted: UInt8[np.ndarray, "H W"], K: int) -> Int[np.ndarray, "K K"]:
    """Pixels by true class (rows) and predicted class (columns), void left out."""
    known = truth != VOID
    pairs = truth[known].astype(np.int64) * K + predicted[known]
    return np.bincount(pairs, minlength=K * K).reshape(K, K)


def ious(matrix: Int[np.ndarray, "K K"]) -> tuple[Float[np.ndarray, "K"], np.ndarray]:
    """Intersection over union of each class, and which classes there are at all."""
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - np.diag(matrix)
    return np.diag(matrix) / np.maximum(union, 1), union > 0


def _mean_iou(matrix: Int[np.ndarray, "K K"]) -> float:
    iou, present = ious(matrix)
    return float(iou[present].mean()) if present.any() else 1.0


def boundary(truth: UInt8[np.ndarray, "H W"], predicted: UInt8[np.ndarray, "H W"], K: int) -> Int[np.ndarray, "4 K"]:
    """Of each class's boundary: predicted pixels near the true one, predicted ones, true ones near the predicted, true ones.

    A pixel is on the boundary of its class if one beside it, above or below is of another. Void counts as of no class.
    """
    predicted = np.where(truth == VOID, VOID, predicted)
    near = max(1.0, NEAR * float(np.hypot(*truth.shape)))
    lines = [np.where(_edges(x), x, VOID) for x in (predicted, truth)]
    sums = np.zeros((4, K), np.int64)
    for k in np.intersect1d(lines[0], lines[1]):
        if k != VOID:
            far = [cv2.distanceTransform((line != k).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for line in lines]
            sums[0, k] = np.sum(far[1][lines[0] == k] <= near)
            sums[2, k] = np.sum(far[0][lines[1] == k] <= near)
    for row, line in ((1, lines[0]), (3, lines[1])):
        sums[row] = np.bincount(line.ravel(), minlength=256)[:K]
    return sums


def _edges(x: UInt8[np.ndarray, "H W"]) -> np.ndarray:
    edge = np.zeros(x.shape, bool)
    down, right = x[1:] != x[:-1], x[:, 1:] != x[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge


def _png(mask: UInt8[np.ndarray, "H W"]) -> bytes:
    return cv2.imencode(".png", mask)[1].tobytes()
