"""Detection: boxes with classes, by one of three heads.

A batch has `boxes` (B, M, 4), (y0, x0, y1, x1) in [0, 1] of what the model is shown, `label` (B, M) of class numbers, NOBODY
in rows without a box, and `crowd` (B, M), of boxes that neither ask for an answer nor forbid one; in evaluation also `area`,
in the image's own pixels, `size`, its height and width, and `content`, what it takes of what is shown, from top left.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from vit.config import NOBODY, DenseHead, DetectionConfig, DetrHead, ViTConfig
from vit.models.detector import Detector, detector_flops, places
from vit.models.detr import Detr, detr_flops
from vit.models.layers import Keys
from vit.models.windows import saved_flops
from vit.models.yolos import Yolos, yolos_flops
from vit.tasks import boxscores, dense, queries
from vit.tasks.structure import Structured

Sums = dict[str, Any]  # NumPy numbers and arrays
Pair = Sequence[int] | Int[np.ndarray, "2"]


class Detection(Structured):
    """The detection task on a data set's classes.

    Args:
      config: the head.
      model: the backbone's sizes.
      data: what the source says of itself: `class_names`, `image_size` (H, W), `channels`, `view`.
    """

    name, headline = "detection", "ap"

    def __init__(self, config: DetectionConfig, model: ViTConfig, data: dict[str, Any]):
        self.config, self.model, self.view = config, model, data["view"]
        self.head: Any = config.head
        self.class_names: list[str] = data["class_names"]
        self.shape = {"image_size": tuple(data["image_size"]), "channels": data["channels"], "classes": len(self.class_names)}

    def build(self, rngs: nnx.Rngs) -> Any:
        """A freshly initialised model."""
        if isinstance(self.head, DenseHead):
            windows = {"window": self.config.window, "global_blocks": self.config.global_blocks}
            return Detector(self.model, self.head, **windows, **self.shape, rngs=rngs)
        kind: Any = Detr if isinstance(self.head, DetrHead) else Yolos
        return kind(self.model, self.head, **self.shape, rngs=rngs)

    def flops(self, side: int = 0) -> int:
        """Operations of one image's forward pass, of an image shrunk to this side if it is given."""
        shape = {**self.shape, "image_size": (side, side)} if side else self.shape
        kinds = {"DenseHead": detector_flops, "DetrHead": detr_flops, "YolosHead": yolos_flops}
        every = kinds[type(self.head).__name__](self.model, self.head, **shape)
        return every - saved_flops(self.model, self.config.window, self.config.global_blocks, shape["image_size"])

    def loss(self, model: Any, batch: dict[str, Array], keys: Keys | None) -> Float[Array, "B"]:
        """The head's loss of each example."""
        if not isinstance(self.head, DenseHead):
            return queries.query_loss(model, batch, self.head, keys)
        result, _ = model(batch["image"], keys=keys)
        _, *size, _ = batch["image"].shape
        where, reach = places(size, self.head.strides)
        sides = np.array(size, np.float32)
        where, reach = jnp.asarray(where / sides), jnp.asarray(reach[:, None] / sides)

        def one(boxes: Array, classes: Array, truth: Array, label: Array, crowd: Array) -> Array:
            return dense.loss(boxes, classes, where, reach, truth, label, crowd, self.head)

        return jax.vmap(one)(result["boxes"], result["classes"], batch["boxes"], batch["label"], batch["crowd"])

    def outputs(self, model: Any, batch: dict[str, Array]) -> dict[str, Array]:
        """What evaluation keeps of each example: `boxes` (B, F, 4), `scores` and `kinds` (B, F), best first; score 0: none."""
        result, found = model(batch["image"])[0], self.config.found
        if not isinstance(self.head, DenseHead):
            return queries.query_outputs(result, self.head, found)
        among = found * self.head.assigned  # in training so many places answer for a box
        best = jax.vmap(lambda boxes, classes: dense.chosen(boxes, classes, self.head.overlap, found, among))
        return dict(zip(("boxes", "scores", "kinds"), best(result["boxes"], result["classes"]), strict=True))

    def metrics(self, predicted: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> Sums:
        """Sums over examples, to be added up over batches: their number. All else needs all boxes at once."""
        return {"count": len(batch["id"])}

    def kept(self, predicted: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What is kept of each example until the end: `id`, `size`, and its true and its found boxes, in its own pixels."""
        truth, found = (np.empty(len(batch["id"]), object) for _ in range(2))
        for i, (size, content) in enumerate(zip(batch["size"], batch["content"], strict=True)):
            shown, real, there = self.shape["image_size"], batch["label"][i] != NOBODY, predicted["scores"][i] > 0
            truth[i] = {
                "boxes": own_pixels(batch["boxes"][i][real], size, content, shown),
                "kinds": batch["label"][i][real],
                "crowd": batch["crowd"][i][real],
                "area": batch["area"][i][real].astype(np.float64),
            }
            found[i] = {
                "boxes": own_pixels(predicted["boxes"][i][there], size, content, shown),
                "kinds": predicted["kinds"][i][there],
                "scores": predicted["scores"][i][there].astype(np.float64),
            }
        return {"id": batch["id"], "size": batch["size"], "truth": truth, "found": found}

    def summary(self, sums: Sums, examples: dict[str, np.ndarray] | None = None) -> dict[str, Any]:
        """COCO's figures of all examples: average precisions and recalls, fractions; None where there is nothing to find."""
        figures = {"examples": int(sums["count"])}
        if examples is None:
            return figures
        sizes = [tuple(map(int, size)) for size in examples["size"]]
        return figures | boxscores.box_figures(list(examples["truth"]), list(examples["found"]), sizes, self.class_names)

    def score(self, figures: dict[str, Any]) -> tuple[float, ...]:
        """What makes one checkpoint better than another; and the threshold, which is kept with them."""
        return boxscores.score(figures)


def own_pixels(boxes: Float[np.ndarray, "n 4"], size: Pair, content: Pair, shown: Pair) -> Float[np.ndarray, "n 4"]:
    """Boxes of what the model is shown (H, W), in pixels of the image itself, cut at its border.

    `size` is the image's own height and width, `content` what it takes of what is shown.
    """
    scale = np.asarray(shown, np.float64) * np.asarray(size, np.float64) / np.asarray(content, np.float64)
    return np.clip(boxes.astype(np.float64) * np.tile(scale, 2), 0, np.tile(np.asarray(size, np.float64), 2))
