"""Scenes composed of scikit-learn's handwritten digits: for segmentation and detection without any download."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt16

from vit.config import NOBODY, ScenesData
from vit.data.crop import opencv
from vit.data.folder import SPLITS

SIDE = 96
MOST = 6  # digits in a scene
SIDES = 16, 32  # of a digit's square, least and most
OVERLAP = 0.3  # most of the smaller of two boxes that the other may cover
CLASS_NAMES = ["background", *map(str, range(10))]


class Scene(NamedTuple):
    """A scene: pixels, a class for each, an object for each (0: none), and the objects' boxes.

    `boxes` are (y0, x0, y1, x1) in [0, 1] around all ink of a digit, hidden or not; `digits` says which digit each is. What is
    drawn later covers what was drawn before, and is the object of a higher number: object i + 1 is `boxes[i]`.
    """

    image: UInt8[np.ndarray, "96 96 3"]
    label: UInt8[np.ndarray, "96 96"]
    instance: UInt16[np.ndarray, "96 96"]
    boxes: Float[np.ndarray, "M 4"]
    digits: Int[np.ndarray, "M"]


def scene(images: Float[np.ndarray, "n 8 8"], labels: Int[np.ndarray, "n"], seed: int, index: int) -> Scene:
    """Scene `index` of a seed: 1 to 6 of the digits (ink in [0, 1]), light, of 16 to 32 pixels, on a dark, textured ground."""
    rng = np.random.default_rng((seed, index))
    image = _ground(rng)
    label, instance = np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE), np.uint16)
    boxes: list[list[int]] = []
    digits: list[int] = []
    for _ in range(max(rng.integers(1, MOST + 1, 2))):  # many more often than few
        which, side = rng.integers(len(images)), int(max(rng.integers(SIDES[0], SIDES[1] + 1, 2)))  # large ones more often
        ink = np.clip(opencv().resize(images[which], (side, side), interpolation=opencv().INTER_CUBIC), 0, 1)
        solid = ink > 0.5
        rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
        tight = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
        for _ in range(20):
            y, x = rng.integers(0, SIDE - side + 1, 2)
            box = (tight + np.array([y, x, y, x])).tolist()
            if all(_covered(box, other) <= OVERLAP for other in boxes):
                break
        else:
            continue  # no room: the scene has one less, never the first
        here = np.s_[y : y + side, x : x + side]
        colour = rng.uniform(0.85, 1.0, 3).astype(np.float32)
        image[here] += ink[..., None] * (colour - image[here])
        boxes.append(box)
        digits.append(int(labels[which]))
        label[here][solid] = digits[-1] + 1
        instance[here][solid] = len(boxes)
    image += np.float32(0.02) * rng.standard_normal(image.shape, np.float32)
    pixels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    return Scene(pixels, label, instance, np.array(boxes, np.float32) / SIDE, np.array(digits, np.int32))


def _ground(rng: np.random.Generator) -> Float[np.ndarray, "96 96 3"]:
    """A dark colour with waves of noise at three sizes, and stripes."""
    ground = np.full((SIDE, SIDE, 3), rng.uniform(0.05, 0.35, 3), np.float32)
    for cells, strength in ((4, 0.06), (12, 0.04), (32, 0.03)):
        noise = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        ground += opencv().resize(noise, (SIDE, SIDE), interpolation=opencv().INTER_LINEAR)
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 30)
    y, x = np.ogrid[:SIDE, :SIDE]
    waves = np.sin(((np.cos(angle) * x + np.sin(angle) * y) * (2 * np.pi / period)).astype(np.float32))
    return ground + np.float32(rng.uniform(0, 0.08)) * waves[..., None]


def _covered(a: list[int], b: list[int]) -> float:
    """What two boxes share, as a share of the smaller."""
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(0, height) * max(0, width) / min(areas)


def _boxes(made: Scene) -> dict[str, np.ndarray]:
    """A scene's boxes as detection wants them, in rows for the most that there can be."""
    spare = MOST - len(made.boxes)
    boxes = np.pad(made.boxes, ((0, spare), (0, 0)))
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) * SIDE**2
    label = np.pad(made.digits, (0, spare), constant_values=NOBODY)
    return {"boxes": boxes, "label": label, "crowd": np.zeros(MOST, bool), "area": area}


class Scenes:
    """A split of the scenes: those of its own digit images alone. `id` is the place in the split."""

    name = "digit scenes"
    view, drawn_anew = "whole", False
    things = [False] + [True] * 10

    def __init__(self, config: ScenesData, split: str):
        from vit.data.sources import Digits  # which opens this one, too

        digits, self.boxes = Digits(split), config.truth == "boxes"
        self.class_names = CLASS_NAMES[1:] if self.boxes else CLASS_NAMES
        self.digits = digits.images[..., 0].astype(np.float32) / 255, digits.labels
        self.seed = SPLITS.index(split)
        self.count = {"train": config.scenes, "val": 200, "test": 500}[split]
        self.known: dict[int, Scene] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        made = self.known[index] if index in self.known else scene(*self.digits, self.seed, index)
        if self.seed:  # what is evaluated is asked for again and again
            self.known[index] = made
        size = np.array((SIDE, SIDE), np.int32)
        truth = _boxes(made) if self.boxes else {"label": made.label, "instance": made.instance}
        return {"image": made.image, **truth, "size": size, "content": size, "id": np.int32(index)}

    def drawn(self, index: int, rng: Any) -> dict[str, Any]:
        """As it is."""
        return self[index]
