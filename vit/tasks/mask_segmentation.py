"""Segmentation by masks with classes (EoMT): semantic, panoptic and instance output of one model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vit.config import SegmentationConfig, ViTConfig
from vit.errors import UserError
from vit.models.eomt import Eomt, eomt_flops
from vit.models.layers import Keys
from vit.tasks import masks, places, quality
from vit.tasks.segmentation import Segmentation, Sums


class MaskSegmentation(Segmentation):
    """As `Segmentation`, and with panoptic or instance output also what each object is.

    Args:
      config, model, data: as of `Segmentation`; `data` tells in `things` which classes are counted by objects, if any.

    Raises:
      UserError: if there are no objects to learn from, or windows would cut them.
    """

    def __init__(self, config: SegmentationConfig, model: ViTConfig, data: dict[str, Any]):
        super().__init__(config, model, data)
        self.things: list[bool] = data.get("things") or []
        self.objects = self.head.output != "semantic"
        if self.objects and not self.things:
            what = f"--task.head.output {self.head.output} needs objects, the masks have classes alone"
            raise UserError(what, data["dataset"], "give COCO annotations, or --task.head.output semantic")
        if self.objects and self.view == "sliding":
            what = f"--task.head.output {self.head.output} can't be joined from sliding windows"
            raise UserError(what, data["dataset"], "give --data.view whole or padded, or --task.head.output semantic")

    def build(self, rngs: nnx.Rngs) -> Eomt:
        """A freshly initialised model."""
        return Eomt(self.model, self.head, **self.shape, rngs=rngs)

    def flops(self, side: int = 0) -> int:
        """Operations of one image's forward pass, of an image shrunk to this side if it is given."""
        shape = {**self.shape, "image_size": (side, side)} if side else self.shape
        return eomt_flops(self.model, self.head, **shape)

    def loss(self, model: Any, batch: dict[str, Array], keys: Keys | None) -> Float[Array, "B"]:
        """Cross-entropy of classes, binary cross-entropy and dice loss of the matched masks, of every prediction."""
        now = {"progress": batch["progress"][0]} if "progress" in batch else {}
        return masks.eomt_loss(model, {**batch, **now}, self.head, len(self.class_names), keys)

    def logits(self, model: Any, images: Float[Array, "B H W C"]) -> Float[Array, "B h w K"]:
        """How much of each class is at each place."""
        return masks.semantic(model(images)[0])

    def outputs(self, model: Any, batch: dict[str, Array]) -> Any:
        """The class of every pixel, as `Segmentation` has it; with objects a dict of it, `ids`, and of all that was found."""
        if not self.objects:
            return super().outputs(model, batch)
        prediction = model(batch["image"])[0]
        return {"ids": self.ids(masks.semantic(prediction), batch), **self._found(prediction, batch)}

    def _found(self, prediction: dict[str, Array], batch: dict[str, Array]) -> dict[str, Array]:
        """Of each image `segments` (H, W) by query, -1 for none, with `kinds`; and masks, packed, with classes and scores."""
        grid, canvas = jnp.moveaxis(prediction["masks"], 1, -1), (batch["label"].shape[1], batch["label"].shape[2])
        stuff = [k for k, thing in enumerate(self.things) if not thing]

        def one(grid: Array, classes: Array, size: Array, content: Array) -> dict[str, Array]:
            whole = places.enlarged(grid, size, content, self.shape["image_size"], canvas)
            inside = (jnp.arange(canvas[0])[:, None] < size[0]) & (jnp.arange(canvas[1]) < size[1])
            mine = {"masks": jnp.moveaxis(whole, -1, 0), "classes": classes}
            objects = masks.instances(mine, self.head, inside)
            cut = objects if self.head.output == "instance" else masks.panoptic(mine, self.head, stuff, inside)
            return {
                "segments": cut["segments"].astype(jnp.int16),
                "kinds": cut["classes"],
                "object_masks": jnp.packbits(objects["masks"], axis=-1),
                "object_kinds": objects["classes"],
                "object_scores": objects["scores"],
            }

        return jax.lax.map(lambda each: one(*each), (grid, prediction["classes"], batch["size"], batch["content"]))

    def metrics(self, predicted: Any, batch: dict[str, np.ndarray]) -> Sums:
        """Sums over examples, to be added up over batches; padding must have been removed."""
        if not self.objects:
            return super().metrics(predicted, batch)
        sums, K = super().metrics(predicted["ids"], batch), len(self.class_names)
        each = zip(predicted["segments"], predicted["kinds"], batch["label"], batch["instance"], batch["size"], strict=True)
        sums["panoptic"] = sum(
            quality.panoptic_sums(s[:h, :w].astype(int), k, t[:h, :w], o[:h, :w], K) for s, k, t, o, (h, w) in each
        )
        if self.head.output == "instance":  # which finds objects alone: no other class is asked of it
            sums["panoptic"] = sums["panoptic"] * np.asarray(self.things)
        return sums

    def kept(self, predicted: Any, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What is kept of each example until the end: as of `Segmentation`, and its true and predicted objects."""
        if not self.objects:
            return super().kept(predicted, batch)
        kept, K = super().kept(predicted["ids"], batch), len(self.class_names)
        truth, found = np.empty(len(batch["id"]), object), np.empty(len(batch["id"]), object)
        thing = np.asarray(self.things)
        for i, (h, w) in enumerate(batch["size"]):
            truth[i] = quality.true_objects(batch["label"][i, :h, :w], batch["instance"][i, :h, :w], K)
            kinds = predicted["object_kinds"][i]
            of = thing[kinds]
            these = np.unpackbits(predicted["object_masks"][i][of], axis=-1)[:, :h, :w].astype(bool)
            found[i] = quality.predicted_objects(these, kinds[of], predicted["object_scores"][i][of])
        return {**kept, "true_objects": truth, "found_objects": found}

    def summary(self, sums: Sums, examples: dict[str, np.ndarray] | None = None) -> dict[str, Any]:
        """Figures of the examples summed; with objects also panoptic quality and COCO's mask AP."""
        figures = super().summary(sums)
        if not self.objects or examples is None:
            return figures
        K = len(self.class_names)
        figures |= quality.panoptic_quality(sums["panoptic"], np.asarray(self.things))
        figures |= quality.mask_ap(list(examples["true_objects"]), list(examples["found_objects"]), K)
        for name in ("pq_per_class", "ap_per_class"):
            figures[name] = dict(zip(self.class_names, figures[name], strict=True))
        return figures
