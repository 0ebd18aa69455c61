"""A trained segmentation model that answers: images of any sizes in, a class for every pixel at those sizes out.

    p = vit.load("runs/segment-digits-s0")
    p.predict("a.png")[0].overlay("a.png")

Images go through the decoder, the view and the normalisation that `eval.py` sends them through: resized, padded or in sliding
windows, as the run's data says.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
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
from vit.training.evaluate import Trained
from vit.training.sharding import by_example, make_mesh, place

BAND = 2**22  # pixels that are counted or coloured at a time
WASTE = 1.5  # times its own canvas's area on which an image is put rather than compile another


@dataclass(frozen=True, eq=False, repr=False)
class MaskPrediction:
    """What a model says of one image.

    `mask` (H, W) has the number of each pixel's class, at the image's own size; `areas` (K,) are the shares of the pixels that
    each of the `class_names` has, float64.
    """

    mask: UInt8[np.ndarray, "H W"]
    class_names: list[str]
    areas: Float[np.ndarray, "K"] = field(init=False)

    def __post_init__(self):
        counts = sum(np.bincount(part.ravel(), minlength=len(self.class_names)) for part in self._bands(self.mask))
        object.__setattr__(self, "areas", counts / self.mask.size)

    def __repr__(self) -> str:
        height, width = self.mask.shape
        return f"MaskPrediction({height} x {width}: {', '.join(f'{name} {share:.1%}' for name, share in self.top())})"

    def top(self, count: int = 3) -> list[tuple[str, float]]:
        """The classes that are there, at most `count`, with their shares of the pixels, the largest first."""
        order = np.argsort(-self.areas, kind="stable")[:count]
        return [(self.class_names[i], float(self.areas[i])) for i in order if self.areas[i]]

    def colours(self) -> UInt8[np.ndarray, "H W 3"]:
        """The mask in colours, those of `vit.report.masks.palette`."""
        from vit.report.masks import palette  # here: it imports matplotlib

        return palette(self.class_names)[self.mask]

    def overlay(self, image: Any) -> UInt8[np.ndarray, "H W 3"]:
        """The mask's colours over the image: its path, a PIL image or an array, as for `predict`."""
        from vit.report.masks import overlay, palette

        below = pixels(image)
        check_size(below, self.mask.shape, "mask", "overlay()")
        colours = palette(self.class_names)
        pairs = zip(self._bands(below), self._bands(self.mask), strict=True)
        return np.concatenate([overlay(i, m, colours) for i, m in pairs])

    def _bands(self, pixels: np.ndarray) -> Iterator[np.ndarray]:
        """Some rows at a time, so that what is made of a large image's doesn't take many times its memory."""
        step = max(1, BAND // self.mask.shape[1])
        return (pixels[i : i + step] for i in range(0, len(pixels), step))


class MaskPredictor:
    """A trained segmentation model at work. `vit.load` makes one.

    Attributes:
      class_names: of the K classes, by their numbers in the masks.
      image_size: (H, W) that images are brought to, or that a window has.
      channels: of what the model sees.
      trained: the model as its checkpoint tells it.
    """

    def __init__(self, trained: Trained):
        data, self.trained = trained.meta["data"], trained
        self.class_names: list[str] = data["class_names"]
        self.image_size: tuple[int, int] = tuple(data["image_size"])
        self.channels: int = data["channels"]
        self._as = MaskData(size=self.image_size, view=data["view"], mean=trained.config.data.mean)
        self._prepare = make_prepare(trained.config.data, trained.config.augment)
        self._mesh = make_mesh(jax.local_devices())
        self._params = everywhere(trained.params, self._mesh)
        self._canvases: list[tuple[int, int]] = []  # for which a program is compiled
        split, whole = by_example(self._mesh).spec, PartitionSpec()
        how: Any = {"mesh": self._mesh, "in_specs": (whole, split), "out_specs": split, "check_vma": False}
        # Each device has images of its own: left to XLA, all of them would go through those of all, one after the other.
        self._logits, self._outputs = (jax.jit(jax.shard_map(f, **how)) for f in (self._to_logits, self._to_outputs))
        self._ids = jax.jit(self._to_ids, static_argnames="canvas")

    def predict(self, images: Any) -> list[MaskPrediction]:
        """One result an image, in order.

        Args:
          images: one image or a list of them, of any sizes: uint8 arrays (H, W, C) or (H, W), PIL images, paths; or a
            uint8 batch (B, H, W, C).

        Raises:
          UserError: for a file that can't be read, or what isn't an image.
        """
        return all_good(self.stream(listed(images)))

    def stream(self, images: Iterable[Any]) -> Generator[tuple[Any, MaskPrediction | BadImage]]:
        """Each image as it was given, in order, with its mask, or with what is wrong with the file.

        Images are read by threads while the device computes. What is held is two batches of images at the model's size and one
        mask; with sliding windows, which go image by image, a few images as they are.

        Args:
          images: as for `predict`, one by one; any iterable, without end if you like.
        """
        sliding = self._as.view == "sliding"
        most = self._mesh.size if sliding else self.batch_size()
        begin: Callable[[list[Shown], int], Iterator[Any]] = self._slide if sliding else self._begin
        read = read_ahead(self._read, images, most + (1 if sliding else 8))
        yield from batch_by_batch(read, most, self._mesh, begin, self._finish)

    def batch_size(self) -> int:
        """How many images go to the devices at once, without sliding windows: the run's own batch, as in `eval.py`.

        Fewer, a power of two for each device, where the memory that is free doesn't hold that many.
        """
        backbone = bytes_of_an_image(self.trained.config.model, (*self.image_size, self.channels))
        return fitting(self.trained.config.batch_size, 2 * backbone, self._mesh)  # twice: the head may take as much

    def view(self, image: Any) -> UInt8[np.ndarray, "h w C"]:
        """What the model is shown of an image, with sliding windows all of it.

        Raises `BadImage`, and `UserError` for what isn't an image.
        """
        return viewed(pixels(image), self._as)[0]

    def _read(self, image: Any) -> tuple[Any, Shown | BadImage]:
        """An image with what the model is to see of it, or with what is wrong with it."""
        try:
            found = pixels(image)
        except BadImage as bad:
            return image, bad
        size = (found.shape[0], found.shape[1])
        if self._as.view == "sliding":  # it comes on a canvas when it's its turn
            return image, Shown(found, size, size)
        return image, Shown(*viewed(found, self._as), size)

    def _begin(self, those: list[Shown], size: int) -> Iterator[UInt8[np.ndarray, "H W"]]:
        """The device begins with a batch, padded with copies of its first image; the masks follow as they are asked for.

        The backbone's program knows nothing of the images' own sizes; that of a mask does, but is quickly compiled.
        """
        images = np.stack([each.image for each in those] + [those[0].image] * (size - len(those)))
        logits = self._logits(self._params, place({"image": images}, self._mesh))
        logits = jax.device_put(logits, self._mesh.devices.flat[0])  # which makes all masks: a size is compiled once

        def mask(i: int, each: Shown) -> UInt8[np.ndarray, "H W"]:
            sizes = np.array([each.size], np.int32), np.array([each.content], np.int32)
            found = np.asarray(self._ids(logits, i, *sizes, canvas=self._canvas(each.size)))
            return found[: each.size[0], : each.size[1]].copy()

        return (mask(i, each) for i, each in enumerate(those))

    def _slide(self, those: list[Shown], size: int) -> Iterator[UInt8[np.ndarray, "H W"]]:
        """The masks of an image for each device, by windows, begun when the first is asked for: two take twice the memory."""
        canvas = self._canvas(tuple(max(sides) for sides in zip(self.image_size, *(each.size for each in those), strict=True)))
        rows = those + [those[0]] * (size - len(those))
        sizes = np.array([each.size for each in rows], np.int32)
        images = np.stack([viewed(each.image, self._as, canvas)[0] for each in rows])
        label = np.zeros((size, *canvas), np.uint8)  # only its shape is looked at
        batch = {"image": images, "size": sizes, "content": sizes, "label": label}
        found = np.asarray(self._outputs(self._params, place(batch, self._mesh)))
        for each, ids in zip(those, found, strict=False):
            yield ids[: each.size[0], : each.size[1]].copy()

    def _finish(self, group: list[tuple[Any, Any]], masks: Any) -> Generator[tuple[Any, MaskPrediction | BadImage]]:
        """The group's results, as the device has them."""
        for image, shown in group:
            yield image, shown if isinstance(shown, BadImage) else MaskPrediction(next(masks), self.class_names)

    def _canvas(self, size: tuple[int, ...]) -> tuple[int, int]:
        """Height and width for which a program is compiled and that hold an image of this size without much waste."""
        own = (rounded(size[0]), rounded(size[1]))
        most = WASTE * own[0] * own[1]
        fitting = [(h, w) for h, w in self._canvases if h >= size[0] and w >= size[1] and h * w <= most]
        if not fitting:
            self._canvases.append(own)
        return min(fitting, key=lambda canvas: canvas[0] * canvas[1], default=own)

    def _to_logits(self, params: Params, batch: dict[str, Array]) -> Float[Array, "B a b K"]:
        task = self.trained.task
        return task.logits(merge(task.graph, params), self._prepare(batch, None)["image"])

    def _to_outputs(self, params: Params, batch: dict[str, Array]) -> UInt8[Array, "B H W"]:
        task = self.trained.task
        return task.outputs(merge(task.graph, params), self._prepare(batch, None))

    def _to_ids(
        self, logits: Float[Array, "B a b K"], row: Any, size: Int[Array, "1 2"], content: Int[Array, "1 2"], canvas: Any
    ) -> UInt8[Array, "H W"]:
        label = jnp.zeros((1, *canvas), jnp.uint8)
        own = jax.lax.dynamic_slice_in_dim(logits, row, 1)
        return self.trained.task.ids(own, {"size": size, "content": content, "label": label})[0]


def rounded(length: int) -> int:
    """At least the length: four numbers between a power of two and the next, and multiples of 32."""
    step = max(32, 2 ** max(0, length.bit_length() - 3))
    return -(-length // step) * step
