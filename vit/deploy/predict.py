"""A trained model that answers: images in, labels and probabilities out, in bounded memory, however many there are.

    p = vit.load("runs/digits-s0")
    p.predict(["a.png", "b.png"])[0].label

Images go through the decoder, the view and the normalisation that `eval.py` sends them through.
"""

import os
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from vit.config import ViTConfig
from vit.data.augment import make_prepare
from vit.data.batches import read_ahead
from vit.data.crop import as_evaluated, evaluated_share
from vit.data.decode import BadImage
from vit.deploy.images import listed, pixels
from vit.errors import UserError
from vit.models.vit import merge, patch_grid, prefix_tokens
from vit.tasks.detection import Detection
from vit.tasks.segmentation import Segmentation
from vit.training.evaluate import Trained, open_run
from vit.training.sharding import collect, distribute, make_mesh, place, replicated
from vit.training.state import make_eval_step
from vit.training.storage import open_folder

if TYPE_CHECKING:
    from vit.deploy.detect import BoxPredictor
    from vit.deploy.segment import MaskPredictor

ROOM = 2e9  # bytes that a batch may take where the device doesn't tell its memory, as a CPU doesn't


class Where(NamedTuple):
    """Where a model looks, by patches: the rollout (B, h, w), and each head of one block (B, heads, h, w)."""

    rollout: Any
    heads: Any


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of one image.

    `label` is the likeliest class, `probability` its probability, `probabilities` (K,) those of all `class_names`, float64;
    `attention`, where it was asked for, is the rollout (h, w) over the patches: a map that tells where the model looks.
    """

    label: str
    probability: float
    probabilities: Float[np.ndarray, "K"] = field(repr=False)
    class_names: list[str] = field(repr=False)
    attention: Float[np.ndarray, "h w"] | None = field(default=None, repr=False)
    heads: Float[np.ndarray, "heads h w"] | None = field(default=None, repr=False)

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The likeliest classes with their probabilities."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.class_names[i], float(self.probabilities[i])) for i in order]


def load(folder: str | os.PathLike, checkpoint: str = "last") -> "Predictor | MaskPredictor | BoxPredictor":
    """The model of a run's folder at `checkpoint`: "last", "best" (by validation) or a step.

    Of a segmentation run a `MaskPredictor`, of a detection run a `BoxPredictor`.
    Raises `UserError` if there's no such run, step, or good checkpoint.
    """
    from vit.deploy.detect import BoxPredictor  # these take much from here
    from vit.deploy.segment import MaskPredictor

    trained = open_run(open_folder(os.fspath(folder)), checkpoint)
    if isinstance(trained.task, Detection):
        return BoxPredictor(trained)
    return MaskPredictor(trained) if isinstance(trained.task, Segmentation) else Predictor(trained)


class Predictor:
    """A trained model at work. `load` makes one.

    Attributes:
      class_names: of the K classes, in the order of `probabilities`.
      image_size: (H, W) that every image is brought to.
      channels: 3 for RGB, 1 for grey; images are turned into that.
      trained: the model as its checkpoint tells it.
    """

    def __init__(self, trained: Trained):
        data, self.trained = trained.meta["data"], trained
        self.class_names: list[str] = data["class_names"]
        self.image_size: tuple[int, int] = tuple(data["image_size"])
        self.channels: int = data["channels"]
        labelled: Any = trained.config.data  # no set with masks: those are MaskPredictor's
        self._share = evaluated_share(labelled)
        self._prepare = make_prepare(trained.config.data, trained.config.augment)
        self._mesh = make_mesh(jax.local_devices())
        self._params = everywhere(trained.params, self._mesh)
        self._classify = make_eval_step(trained.task, self._prepare)
        self._look = cache(self._compiled_look)

    def predict(self, images: Any, attention: bool = False) -> list[Prediction]:
        """One result an image, in order.

        Args:
          images: one image or a list of them, of any sizes: uint8 arrays (H, W, C) or (H, W), PIL images, paths; or a
            uint8 batch (B, H, W, C).
          attention: ask for the rollout (h, w) of each.

        Raises:
          UserError: for a file that can't be read, or what isn't an image.
        """
        return all_good(self.stream(listed(images), -1 if attention else None))

    def stream(self, images: Iterable[Any], block: int | None = None) -> Generator[tuple[Any, Prediction | BadImage]]:
        """Each image as it was given, in order, with what the model says of it, or with what is wrong with the file.

        Images are read by threads while the device computes; what is held is two batches of images at the model's size. All
        batches have one shape, so one program is compiled.

        Args:
          images: as for `predict`, one by one; any iterable, without end if you like.
          block: of which the attention of each head is asked for, and the rollout with it; negative numbers count from the
            last; None for neither.
        """
        most = self.batch_size(block is not None)
        read = read_ahead(self._viewed, images, most + 8)
        yield from batch_by_batch(read, most, self._mesh, lambda good, size: self._start(good, size, block), self._finish)

    def batch_size(self, attention: bool = False) -> int:
        """How many images go to the devices at once: the run's own batch, so that the numbers are bitwise `eval.py`'s.

        Fewer, a power of two for each device, where the memory that is free doesn't hold that many.
        """
        an_image = bytes_of_an_image(self.trained.config.model, (*self.image_size, self.channels), attention)
        return fitting(self.trained.config.batch_size, an_image, self._mesh)

    def view(self, image: Any) -> UInt8[np.ndarray, "H W C"]:
        """What the model is shown of an image. Raises `BadImage`, and `UserError` for what isn't an image."""
        return as_evaluated(pixels(image), self.image_size, self.channels, self._share)

    def _viewed(self, image: Any) -> tuple[Any, UInt8[np.ndarray, "H W C"] | BadImage]:
        """An image with its view, or with what is wrong with it."""
        try:
            return image, self.view(image)
        except BadImage as bad:
            return image, bad

    def _start(self, views: list[UInt8[np.ndarray, "H W C"]], size: int, block: int | None) -> tuple[Any, Any]:
        """The device begins with a batch; it's padded with copies of its first image."""
        images = np.stack(views + [views[0]] * (size - len(views)))
        batch = place({"image": images}, self._mesh)
        if block is None:
            return self._classify(self._params, batch), None
        return self._look(range(self.trained.config.model.depth)[block])(self._params, batch)

    def _finish(self, group: list[tuple[Any, Any]], started: Any) -> Generator[tuple[Any, Prediction | BadImage]]:
        """The group's results, once the device has them."""
        logits, where = collect(started) if started else (None, None)
        probabilities = [] if logits is None else self.trained.task.probabilities(logits)
        place_in_batch = 0
        for image, view in group:
            if isinstance(view, BadImage):
                yield image, view
                continue
            row = probabilities[place_in_batch]
            best = int(row.argmax())
            maps = (where.rollout[place_in_batch], where.heads[place_in_batch]) if where else ()
            yield image, Prediction(self.class_names[best], float(row[best]), row, self.class_names, *maps)
            place_in_batch += 1

    def _compiled_look(self, block: int) -> Callable[..., Any]:
        """(params, batch) → logits, and where the model looks."""
        from vit.report.attention import heads, pooled, rollout  # here: it imports matplotlib

        task = self.trained.task

        def look(params: dict[str, Any], batch: dict[str, Any]) -> tuple[Any, Where]:
            logits, out = merge(task.graph, params)(self._prepare(batch, None)["image"], attention=True)
            return logits, Where(pooled(task.model.pool, rollout(out["attention"]), out), heads(task.model.pool, out, block))

        return jax.jit(look)


def everywhere(params: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Parameters, whole on each device."""
    like = {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)) for path, x in params.items()}
    return distribute(params, like)


def all_good(stream: Iterable[tuple[Any, Any]]) -> list[Any]:
    """The results of a stream. Raises `UserError` for a file that can't be read."""
    results = []
    for image, result in stream:
        if isinstance(result, BadImage):
            where = f"{image!s:.200}" if isinstance(image, str | os.PathLike) else f"image {len(results)}"
            raise UserError(f"this image can't be read: {result}", where, "mend it, or leave it out") from result
        results.append(result)
    return results


def batch_by_batch(
    images: Iterable[tuple[Any, Any]],
    most: int,
    mesh: Mesh,
    begin: Callable[[list[Any], int], Any],
    finish: Callable[[list[tuple[Any, Any]], Any], Iterable[tuple[Any, Any]]],
) -> Generator[tuple[Any, Any]]:
    """What `finish` makes of each group of images and of what `begin` started for its good ones, while the next one runs.

    Args:
      images: each with its view, or with the `BadImage` that it is.
      most: good images in a group.
      mesh: of the devices.
      begin: of the views of a group and the size of the batch; not called where there are none.
      finish: of a group and what was begun for it, None for nothing.
    """
    size, running = 0, None
    for group in grouped(images, most):
        good = [view for _, view in group if not isinstance(view, BadImage)]
        size = max(size, shape(len(good), most, mesh))
        started = group, begin(good, size) if good else None
        if running:
            yield from finish(*running)
        running = started
    if running:
        yield from finish(*running)


def grouped(images: Iterable[tuple[Any, Any]], most: int) -> Generator[list[tuple[Any, Any]]]:
    """Lists of images with their views, `most` good ones in each but the last; bad ones stay in their places."""
    group, good = [], 0
    for image, view in images:
        group.append((image, view))
        good += not isinstance(view, BadImage)
        if good == most or len(group) == 4 * most:  # a folder of bad ones must be told of, too
            yield group
            group, good = [], 0
    if group:
        yield group


def shape(count: int, most: int, mesh: Mesh) -> int:
    """The size of a batch for so many images: a short list needn't fill the whole one, and few sizes are few compilations."""
    return next((n * mesh.size for n in (1, 8, 64) if count <= n * mesh.size < most), most)


def bytes_of_an_image(config: ViTConfig, image: tuple[int, int, int], attention: bool = False) -> int:
    """What the backbone takes for an image (H, W, C) on its way through, at most; `attention`: every block's is kept."""
    H, W, C = image
    h, w = patch_grid(config, H, W)
    N = h * w + prefix_tokens(config)[0]
    weights = config.heads * N * N * (config.depth if attention else 1)
    return 4 * (2 * H * W * C + N * (8 * config.width + 2 * config.mlp) + 2 * weights)


def fitting(batch: int, an_image: int, mesh: Mesh) -> int:
    """The batch, rounded up for the devices; where it doesn't fit in their memory a power of two for each."""
    devices = mesh.devices.flat
    each, most = -(-batch // len(devices)), int(_room(devices[0]) / an_image)
    return len(devices) * (each if each <= most else 2 ** max(0, most.bit_length() - 1))


def _room(device: Any) -> float:
    """Bytes that a batch may take: a quarter of what is free."""
    memory = device.memory_stats() if device.platform != "cpu" else None
    return (memory["bytes_limit"] - memory["bytes_in_use"]) / 4 if memory else ROOM
