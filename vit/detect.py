"""Settings of detection: sets with boxes, the task, its heads. `vit.config` offers all."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from vit.limits import Count, Natural, NonNegative, Positive, Range, Share

NOBODY = -1  # the class of a row that holds no box


@dataclass(frozen=True)
class BoxData:
    """Your own images with boxes, in any form that is found (docs/decisions/0016)."""

    dir: str = ""
    """A folder of images with COCO's JSON, Pascal VOC's XML or YOLO's TXT, or a prepared set of TFDS."""
    annotations: str = ""
    """A JSON as COCO's, of images that are in dir or beside it; split by content if there are no others."""
    size: tuple[Count, ...] = (512, 512)
    """Height and width of what the model is shown."""
    view: Literal["whole", "padded"] = "padded"
    """What is shown of an image: resized to size, or resized with its shape kept and the rest filled."""
    scale: tuple[Positive, ...] = (0.5, 2.0)
    """Least and largest random scale of training crops, of the image as evaluation shows it (large-scale jitter)."""
    visible: Share = 0.3
    """Least share of a box's area that a training crop must keep; boxes of less are dropped."""
    mosaic: Share = 0.0
    """Probability that a training image is four of them, around a random point (arXiv 2004.10934); for small sets."""
    most: Count = 100
    """Boxes of a training image at most; of more, the largest."""
    names: tuple[str, ...] = ()
    """Names of the classes, for YOLO's numbers; default: those of data.yaml, classes.txt or the annotations."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Per-channel mean of pixels in [0, 1], subtracted before the model."""
    std: tuple[Positive, ...] = (0.229, 0.224, 0.225)
    """Per-channel standard deviation of pixels in [0, 1], divided by."""
    stream: bool = True
    """Read files each time they are needed; else decoded images are held in memory. The batches are the same."""
    bad_images: Literal["error", "skip"] = "error"
    """An image that can't be decoded ends the run, or another stands in for it, for at most 1 % of the images."""
    bad_boxes: Literal["error", "drop"] = "error"
    """Boxes that can't be (no area, outside, reversed, not a number) end the run, or are dropped and counted."""


@dataclass(frozen=True)
class DenseHead:
    """A pyramid of the last tokens (ViTDet, arXiv 2203.16527), a score for each class and a box at every place, then NMS."""

    width: Count = 128
    """Channels."""
    strides: tuple[Count, ...] = (8, 16, 32)
    """Pixels from one place to the next at each size of the pyramid: the patch times or through powers of two."""
    convs: Natural = 2
    """3x3 convolutions before scores and boxes."""
    assigned: Count = 10
    """Places that answer for a box at most, those that fit it best (task alignment, arXiv 2108.07755)."""
    box_weight: NonNegative = 2.0
    """Of the boxes' GIoU loss, beside the scores' loss."""
    overlap: Share = 0.6
    """Of two boxes of a class with a larger IoU, NMS leaves the one of the better score."""


@dataclass(frozen=True)
class DetrHead:
    """DETR's decoder (arXiv 2005.12872): queries attend to one another and to the tokens, each becomes a box with a class."""

    queries: Count = 100
    """Boxes at most."""
    layers: Count = 6
    """Of the decoder, each with a loss of its own."""
    groups: Count = 1
    """Groups of queries that are matched for themselves in training (arXiv 2207.13085); the first is used afterwards."""
    denoising: Natural = 0
    """Noisy copies of the true boxes that are to be mended in training (arXiv 2203.01305)."""
    class_weight: NonNegative = 2.0
    """Of the classes' focal loss, in the loss and in the matching."""
    box_weight: NonNegative = 5.0
    """Of the boxes' L1 loss."""
    giou_weight: NonNegative = 2.0
    """Of the boxes' GIoU loss."""


@dataclass(frozen=True)
class YolosHead:
    """Detection tokens in the encoder (YOLOS, arXiv 2106.00666), each of which becomes a box with a class."""

    queries: Count = 100
    """Detection tokens."""
    middle: bool = False
    """Learned positions that are added after each block but the last, as YOLOS-S and -B have them."""
    class_weight: NonNegative = 1.0
    """Of the cross-entropy of the classes, in the loss and in the matching."""
    box_weight: NonNegative = 5.0
    """Of the boxes' L1 loss."""
    giou_weight: NonNegative = 2.0
    """Of the boxes' GIoU loss."""
    no_object: Share = 0.1
    """Weight of tokens that match nothing, in the cross-entropy of the classes."""


@dataclass(frozen=True)
class DetectionConfig:
    """Boxes with classes."""

    head: DenseHead | DetrHead | YolosHead = field(default_factory=DenseHead)
    window: Natural = 0
    """Side in tokens of the windows in which most blocks attend (arXiv 2203.16527), for large images; 0: all attend to all."""
    global_blocks: Count = 4
    """With windows: blocks that attend to all tokens, evenly spread, the last among them."""
    found: Annotated[int, Range(1, 300)] = 100
    """Boxes of an image at most, in evaluation and prediction."""


def detect_contradictions(config: Any) -> Iterator[tuple[Any, str, str]]:
    """Of a `Config`: whether something can't be, what, and what to give instead."""
    if isinstance(config.task, DetectionConfig):
        augment = config.augment
        names = ("mixup", "cutmix", "erase", "randaugment", "crop", "rotate", "zoom", "shear", "shift")
        changed = [name for name in names if getattr(augment, name)]
        what = f"--augment.{changed[0] if changed else ''} changes an image without its boxes"
        yield changed, what, "0 for it; boxes move with flip, and with the data's scale and mosaic"
        if isinstance(config.task.head, DenseHead):
            strides = config.task.head.strides
            bad = not strides or len(set(strides)) < len(strides)
            yield bad, f"--task.head.strides are {' '.join(map(str, strides)) or 'none'}", "one or more, each once"
            for stride in strides:
                small, large = sorted((config.model.patch, stride))
                what = f"--task.head.strides {stride} doesn't fit patches of {config.model.patch}: no power of two lies between"
                yield large % small or large // small & (large // small - 1), what, "the patch times or through powers of two"
        bad = config.task.window and config.model.rope != "none"
        yield bad, "--task.window can't cut an image whose positions are rotary", "--task.window 0"
        bad = config.task.window and not isinstance(config.task.head, DenseHead)
        yield bad, "--task.window is for the dense head alone", "--task.window 0"
    if isinstance(config.data, BoxData):
        size, scale, patch = config.data.size, config.data.scale, config.model.patch
        yield len(size) != 2, f"--data.size has {len(size)} values, not height and width", "two"
        bad = next((side for side in size if side % patch), None)
        yield bad, f"--data.size {bad} isn't a whole number of patches", f"multiples of {patch}"
        what = f"--data.scale {' '.join(map(str, scale))} isn't a least and a largest scale"
        yield len(scale) != 2 or scale[0] > scale[1], what, "two, the smaller first"
