"""A trained detector that answers: images of any sizes in, boxes with classes and scores in their own pixels out.

    p = vit.load("runs/detect-digits-s0")
    p.predict("a.png")[0].draw("a.png")

Images go through the decoder, the view and the normalisation that `eval.py` sends them through.
"""

from collections import Counter
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, UInt8

from vit.config import MaskData
from vit.data.augment import make_prepare
from vit.data.batches import read_ahead
from vit.data.decode import BadImage
from vit.data.maskcrop import viewed
from vit.deploy.images import Shown, check_size, listed, pixels
from vit.deploy.predict import all_good, batch_by_batch, bytes_of_an_image, everywhere, fitting
from vit.models.vit import Params, merge
from vit.tasks import boxscores
from vit.tasks.detection import own_pixels
from vit.training.evaluate import Trained
from vit.training.sharding import by_example, collect, make_mesh, place


@dataclass(frozen=True, eq=False, repr=False)
class BoxPrediction:
    """What a model finds in one image, the best first.

    `boxes` (n, 4) are y0, x0, y1, x1 in pixels of the image, `kinds` (n,) the numbers of their classes, which are called
    `class_names`, `scores` (n,) in [0, 1]; `size` is the image's height and width.
    """

    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, "n"]
    kinds: Int[np.ndarray, "n"]
    class_names: list[str]
    size: tuple[int, int]

    def __repr__(self) -> str:
        told = ", ".join(f"{count} {name}" for name, count in self.counts().items())
        return f"BoxPrediction({self.size[0]} x {self.size[1]}: {told or 'nothing'})"

    def counts(self) -> dict[str, int]:
        """How many boxes there are of each class that there is, the most first."""
        return {self.class_names[kind]: count for kind, count in Counter(self.kinds.tolist()).most_common()}

    def draw(self, image: Any) -> UInt8[np.ndarray, "H W 3"]:
        """The boxes over the image: its path, a PIL image or an array, as for `predict`."""
        from vit.report import boxes  # here: it imports matplotlib

        below = pixels(image)
        check_size(below, self.size, "boxes", "draw()")
        words = boxes.told(self.class_names, self.kinds, self.scores)
        return boxes.drawn(boxes.drawing(below, self.boxes, self.kinds, words), self.class_names)


class BoxPredictor:
    """A trained detector at work. `vit.load` makes one.

    Attributes:
      class_names: of the K classes, by their numbers.
      image_size: (H, W) that images are brought to.
      channels: of what the model sees.
      threshold: the least score of a box that is told of: the best by the last validation, and yours to change.
      trained: the model as its checkpoint tells it.
    """

    def __init__(self, trained: Trained):
        data, self.trained = trained.meta["data"], trained
        self.class_names: list[str] = data["class_names"]
        self.image_size: tuple[int, int] = tuple(data["image_size"])
        self.channels: int = data["channels"]
        self.threshold = boxscores.chosen_threshold(trained.meta["scores"], trained.step)
        self._as = MaskData(size=self.image_size, view=data["view"], mean=trained.config.data.mean)
        self._prepare = make_prepare(trained.config.data, trained.config.augment)
        self._mesh = make_mesh(jax.local_devices())
        self._params = everywhere(trained.params, self._mesh)
        split, whole = by_example(self._mesh).spec, PartitionSpec()
        how: Any = {"mesh": self._mesh, "in_specs": (whole, split), "out_specs": split, "check_vma": False}
        # Each device has images of its own: left to XLA, all would wait for each round of the others' suppression.
        self._outputs = jax.jit(jax.shard_map(self._to_outputs, **how))

    def predict(self, images: Any) -> list[BoxPrediction]:
        """One result an image, in order.

        Args:
          images: one image or a list of them, of any sizes: uint8 arrays (H, W, C) or (H, W), PIL images, paths; or a
            uint8 batch (B, H, W, C).

        Raises:
          UserError: for a file that can't be read, or what isn't an image.
        """
        return all_good(self.stream(listed(images)))

    def stream(self, images: Iterable[Any]) -> Generator[tuple[Any, BoxPrediction | BadImage]]:
        """Each image as it was given, in order, with its boxes, or with what is wrong with the file.

        Images are read by threads while the device computes; what is held is two batches of images at the model's size. All
        batches have one shape, so one program is compiled.

        Args:
          images: as for `predict`, one by one; any iterable, without end if you like.
        """
        most = self.batch_size()
        yield from batch_by_batch(read_ahead(self._read, images, most + 8), most, self._mesh, self._begin, self._finish)

    def batch_size(self) -> int:
        """How many images go to the devices at once: the run's own batch, as in `eval.py`.

        Fewer, a power of two for each device, where the memory that is free doesn't hold that many.
        """
        backbone = bytes_of_an_image(self.trained.config.model, (*self.image_size, self.channels))
        return fitting(self.trained.config.batch_size, 2 * backbone, self._mesh)  # twice: the head may take as much

    def view(self, image: Any) -> UInt8[np.ndarray, "h w C"]:
        """What the model is shown of an image. Raises `BadImage`, and `UserError` for what isn't an image."""
        return viewed(pixels(image), self._as)[0]

    def _read(self, image: Any) -> tuple[Any, Shown | BadImage]:
        """An image with what the model is to see of it, or with what is wrong with it."""
        try:
            found = pixels(image)
        except BadImage as bad:
            return image, bad
        return image, Shown(*viewed(found, self._as), (found.shape[0], found.shape[1]))

    def _begin(self, those: list[Shown], size: int) -> dict[str, Array]:
        """The device begins with a batch; it's padded with copies of its first image."""
        images = np.stack([each.image for each in those] + [those[0].image] * (size - len(those)))
        return self._outputs(self._params, place({"image": images}, self._mesh))

    def _finish(self, group: list[tuple[Any, Any]], started: Any) -> Generator[tuple[Any, BoxPrediction | BadImage]]:
        """The group's results, once the device has them."""
        found, i = collect(started) if started else {}, 0
        for image, shown in group:
            if isinstance(shown, BadImage):
                yield image, shown
                continue
            yield image, self._prediction({name: x[i] for name, x in found.items()}, shown)
            i += 1

    def _prediction(self, found: dict[str, np.ndarray], shown: Shown) -> BoxPrediction:
        found = boxscores.above(found, max(self.threshold, np.finfo(float).tiny))  # a score of 0 is no box
        boxes = own_pixels(found["boxes"], shown.size, shown.content, self.image_size)
        return BoxPrediction(boxes, found["scores"].astype(float), found["kinds"], self.class_names, shown.size)

    def _to_outputs(self, params: Params, batch: dict[str, Array]) -> dict[str, Array]:
        task = self.trained.task
        return task.outputs(merge(task.graph, params), self._prepare(batch, None))
