"""Settings of what answers for every place of an image: sets with masks, segmentation, its heads. `vit.config` offers all."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from vit.limits import Count, Natural, NonNegative, Positive, Range, Share

VOID = 255  # in a mask, whatever its file calls it: no class


@dataclass(frozen=True)
class ScenesData:
    """Scenes of 96x96 pixels composed from scikit-learn's digits on textured grounds, with masks, objects and boxes."""

    scenes: Count = 6000
    """Scenes to train on; 200 validate and 500 test, of digit images of those splits alone."""
    mean: tuple[float, ...] = (0.5,)
    """Per-channel mean of pixels in [0, 1], subtracted before the model."""
    std: tuple[Positive, ...] = (0.25,)
    """Per-channel standard deviation of pixels in [0, 1], divided by."""
    truth: Literal["masks", "boxes"] = "masks"
    """What of a scene is told: for segmentation or for detection."""
    stream: bool = False
    """Compose in Grain's threads instead of holding the split in memory. The batches are the same."""


@dataclass(frozen=True)
class MaskData:
    """Your own images with a class id for every pixel, in any form that is found (docs/decisions/0013)."""

    dir: str = ""
    """A folder of images and one of masks, VOC's or COCO's layout, or a prepared set of TFDS."""
    size: tuple[Count, ...] = (512, 512)
    """Height and width of what the model is shown: random crops in training; else see view."""
    view: Literal["whole", "padded", "sliding"] = "whole"
    """What evaluation and prediction show: the image resized to size, the same with its shape kept, or windows of size."""
    scale: tuple[Positive, ...] = (0.5, 2.0)
    """Least and largest random scale of training crops: of the resized image, or of the image itself if view is sliding."""
    names: tuple[str, ...] = ()
    """Names of the ids from 0 on; default: those of classes.txt, of a palette file, or the ids that the masks have."""
    void: tuple[Natural, ...] = (255,)
    """Ids that are no class: ignored in the loss and in all figures. The other ids become classes in their order."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Per-channel mean of pixels in [0, 1], subtracted before the model."""
    std: tuple[Positive, ...] = (0.229, 0.224, 0.225)
    """Per-channel standard deviation of pixels in [0, 1], divided by."""
    stream: bool = True
    """Read files each time they are needed; else decoded images and masks are held in memory. The batches are the same."""
    bad_images: Literal["error", "skip"] = "error"
    """A pair that can't be decoded ends the run, or another stands in for it, for at most 1 % of the images."""


@dataclass(frozen=True)
class LinearHead:
    """One linear map of each patch token, its logits upsampled bilinearly (DINOv2's evaluation, arXiv 2304.07193)."""


@dataclass(frozen=True)
class ConvHead:
    """Tokens of several blocks summed, then enlarged by twos with 3x3 convolutions and, at each size, the image's pixels."""

    width: Count = 64
    """Channels."""
    levels: Count = 4
    """Blocks whose tokens are read, evenly spread, the last among them."""
    stride: Count = 4
    """Pixels from one place of the last convolution to the next; the patch is this times a power of two."""
    fine: Literal["bilinear", "subpixel"] = "bilinear"
    """How pixels come of the last places: logits upsampled, or logits of each pixel from its place (arXiv 1609.05158)."""


@dataclass(frozen=True)
class EomtHead:
    """The encoder-only mask transformer (arXiv 2503.19108): queries join the last blocks and become masks with classes."""

    queries: Count = 100
    """Masks at most, whatever they are of."""
    blocks: Count = 4
    """The last blocks, which queries go through too."""
    upscale: Natural = 2
    """Times that the tokens' grid is doubled before masks are made of it."""
    output: Literal["semantic", "panoptic", "instance"] = "semantic"
    """A mask for each class, or for each object too; instance: for objects alone."""
    points: Count = 12544
    """Places of a mask at which matching and losses look, three quarters of them where the mask is unsure."""
    class_weight: NonNegative = 2.0
    """Of the cross-entropy of the classes, in the loss and in the matching."""
    mask_weight: NonNegative = 5.0
    """Of the masks' binary cross-entropy."""
    dice_weight: NonNegative = 5.0
    """Of the masks' dice loss."""
    no_object: Share = 0.1
    """Weight of queries that match nothing, in the cross-entropy of the classes."""
    threshold: Annotated[float, Range(0, 1)] = 0.8
    """Least probability of a mask's class in panoptic and instance output."""


@dataclass(frozen=True)
class SegmentationConfig:
    """A class for every pixel."""

    head: LinearHead | ConvHead | EomtHead = field(default_factory=ConvHead)
    dice: NonNegative = 0.0
    """Weight of the dice loss of the classes that an image has (arXiv 1606.04797) beside cross-entropy; for rare classes."""
    overlap: Share = 1 / 3
    """Least share of a sliding window that the next one sees too; their logits are averaged."""


def dense_contradictions(config: Any) -> Iterator[tuple[Any, str, str]]:
    """Of a `Config`: whether something can't be, what, and what to give instead."""
    if isinstance(config.task, SegmentationConfig):
        head, augment = config.task.head, config.augment
        mixing = [name for name in ("mixup", "cutmix", "erase", "randaugment") if getattr(augment, name)]
        what = f"--augment.{mixing[0] if mixing else ''} changes an image without its mask"
        yield mixing, what, "0 for it; masks move with crop, flip, rotate, zoom, shear and shift"
        if isinstance(head, ConvHead):
            ratio, rest = divmod(config.model.patch, head.stride)
            what = f"--task.head.stride {head.stride} can't be reached from patches of {config.model.patch} by halving"
            yield rest or ratio & (ratio - 1), what, "a stride that is the patch, its half, its quarter, …"
        if isinstance(head, EomtHead):
            what = f"--task.head.blocks {head.blocks} are more than the model's {config.model.depth}"
            yield head.blocks > config.model.depth, what, "as many as --model.depth or fewer"
    if isinstance(config.data, MaskData):
        size, scale, patch = config.data.size, config.data.scale, config.model.patch
        yield len(size) != 2, f"--data.size has {len(size)} values, not height and width", "two"
        bad = next((side for side in size if side % patch), None)
        yield bad, f"--data.size {bad} isn't a whole number of patches", f"multiples of {patch}"
        what = f"--data.scale {' '.join(map(str, scale))} isn't a least and a largest scale"
        yield len(scale) != 2 or scale[0] > scale[1], what, "two, the smaller first"
