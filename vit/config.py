"""Everything that describes a run: frozen dataclasses, their limits, their JSON. No behaviour, no jax.

A file under `configs/` has `get_config() -> Config`; `vit.flags` turns every field into a typed flag with its docstring
as help. Limits stand in the type hints (`vit.limits`) and are checked by `validate` before anything runs.
"""

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from vit.backbone import VARIANTS as VARIANTS
from vit.backbone import ViTConfig as ViTConfig
from vit.dense import VOID as VOID
from vit.dense import ConvHead as ConvHead
from vit.dense import EomtHead as EomtHead
from vit.dense import LinearHead as LinearHead
from vit.dense import MaskData as MaskData
from vit.dense import ScenesData as ScenesData
from vit.dense import SegmentationConfig as SegmentationConfig
from vit.dense import dense_contradictions
from vit.detect import NOBODY as NOBODY
from vit.detect import BoxData as BoxData
from vit.detect import DenseHead as DenseHead
from vit.detect import DetectionConfig as DetectionConfig
from vit.detect import DetrHead as DetrHead
from vit.detect import YolosHead as YolosHead
from vit.detect import detect_contradictions
from vit.errors import UserError
from vit.limits import Count, Natural, NonNegative, Positive, Range, Share, check
from vit.recipe import SGD as SGD
from vit.recipe import AdamW as AdamW
from vit.recipe import LoraConfig as LoraConfig
from vit.recipe import Muon as Muon
from vit.recipe import ScheduleConfig as ScheduleConfig


@dataclass(frozen=True)
class DigitsData:
    """scikit-learn's 1,797 handwritten digits: 8x8, grey, embedded in the package."""

    mean: tuple[float, ...] = (0.305,)
    """Per-channel mean of pixels in [0, 1], subtracted before the model."""
    std: tuple[Positive, ...] = (0.376,)
    """Per-channel standard deviation of pixels in [0, 1], divided by."""
    stream: bool = False
    """Read through Grain's threads instead of holding the split in memory. The batches are the same."""


@dataclass(frozen=True)
class TfdsData:
    """A prepared set of TensorFlow Datasets, with an `image` and a `label`. `vit prepare NAME` makes one."""

    name: str = "cifar10"
    """Its name, as in the TFDS catalogue."""
    dir: str = "~/tensorflow_datasets"
    """The folder of prepared sets."""
    train: str = "train[:45000]"
    """Images to train on, in TFDS's notation of splits."""
    val: str = "train[45000:]"
    """Images to choose on."""
    test: str = "test"
    """Images to report on."""
    size: Natural = 0
    """Side of square crops made while reading, random in training, central else; 0: none."""
    random_crop: Literal["inception", "shift"] = "inception"
    """In training: of any size and shape (arXiv 1409.4842), or of the central crop's size at any place."""
    crop: Annotated[float, Range(0, 1, open="low")] = 0.875
    """Side of the central crop, as a share of the shorter side."""
    mean: tuple[float, ...] = (0.5,)
    """Per-channel mean of pixels in [0, 1], subtracted before the model."""
    std: tuple[Positive, ...] = (0.5,)
    """Per-channel standard deviation of pixels in [0, 1], divided by."""
    stream: bool = False
    """Read through Grain's threads instead of holding the split in memory. The batches are the same."""


@dataclass(frozen=True)
class FolderData:
    """Your own images, in any form that is found (docs/decisions/0008); every image becomes a square."""

    dir: str = ""
    """Class folders, a table of paths and labels (CSV, JSONL), or a prepared set of TFDS or Hugging Face; or hf:NAME."""
    size: Count = 224
    """Side of the square crops made while reading, random in training (arXiv 1409.4842), central else."""
    crop: Annotated[float, Range(0, 1, open="low")] = 0.875
    """Side of the central crop, as a share of the shorter side."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Per-channel mean of pixels in [0, 1], subtracted before the model."""
    std: tuple[Positive, ...] = (0.229, 0.224, 0.225)
    """Per-channel standard deviation of pixels in [0, 1], divided by."""
    stream: bool = True
    """Read through Grain's threads; else all images are held in memory as evaluation sees them."""
    bad_images: Literal["error", "skip"] = "error"
    """An image that can't be decoded ends the run, or another stands in for it, for at most 1 % of the images."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes to training images, inside the jitted step. Zero switches an operation off."""

    rotate: Annotated[float, Range(0, 180)] = 0.0
    """Rotate by up to this many degrees, either way."""
    zoom: Share = 0.0
    """Scale height and width, each by a factor in [1 - zoom, 1 + zoom]."""
    shear: Share = 0.0
    """Shear by a slope in [-shear, shear]."""
    shift: Share = 0.0
    """Shift by up to this share of the side, in each direction."""
    crop: Natural = 0
    """Pad with this many black pixels and crop back, at random."""
    flip: bool = False
    """Exchange left and right in half of the images."""
    colour: Share = 0.0
    """Brightness, contrast and saturation, each by a factor in [1 - colour, 1 + colour]."""
    randaugment: Natural = 0
    """RandAugment's number of operations an image (arXiv 1909.13719, timm's operations, each with probability 0.5)."""
    magnitude: Annotated[float, Range(0, 10)] = 9.0
    """RandAugment's magnitude, with standard deviation 0.5."""
    erase: Share = 0.0
    """Probability of random erasing (arXiv 1708.04896): noise in a box of 2 to 33 % of the image."""
    mixup: NonNegative = 0.0
    """Mixup's alpha (arXiv 1710.09412)."""
    cutmix: NonNegative = 0.0
    """CutMix's alpha (arXiv 1905.04899); with mixup as well, an image gets one of the two."""


@dataclass(frozen=True)
class ClassificationConfig:
    """One label an image, softmax cross-entropy."""

    label_smoothing: Share = 0.0
    """Share of the target's mass spread evenly over all classes."""


Data = DigitsData | TfdsData | FolderData | ScenesData | MaskData | BoxData
Task = ClassificationConfig | SegmentationConfig | DetectionConfig
HEADS = LinearHead, ConvHead, EomtHead, DenseHead, DetrHead, YolosHead


@dataclass(frozen=True)
class Config:
    """A training run."""

    workdir: str = ""
    """Where the run lives. Default: runs/CONFIG-sSEED. The same command again resumes."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Decides initialisation, order of examples, augmentation and dropout."""
    steps: Count = 1000
    """Updates in all. May be raised on a rerun."""
    batch_size: Count = 128
    """Images an update, over all devices."""
    accumulate: Count = 1
    """Microbatches that a batch is cut into; their gradients add up to the whole batch's."""
    clip: NonNegative = 1.0
    """Largest gradient norm (0: no clipping)."""
    ema: Share = 0.0
    """Decay of the moving average of the parameters that is evaluated (0: none)."""
    eval_every: Count = 100
    """Steps between evaluations on the validation split."""
    save_every: Count = 100
    """Steps between checkpoints."""
    log_every: Count = 10
    """Steps between lines in metrics.jsonl."""
    keep: Count = 3
    """Newest checkpoints kept, beside the best."""
    fsdp: bool = False
    """Spread parameters and optimiser state over the devices, instead of a copy on each."""
    tensor: Count = 1
    """Devices of a host that share each example, its heads and its MLPs (tensor parallel, arXiv 1909.08053)."""
    distributed: bool = False
    """One of several processes, one a host: call jax.distributed.initialize() first."""
    dry_run: bool = False
    """Say what the run will need of the devices and the disk here, and end."""
    profile: Natural = 0
    """Updates to trace: what took their time is then in report.html, the trace in the run's folder."""
    weights: str = ""
    """Pretrained weights to begin from: a file, a run's folder, timm:NAME or hf:NAME. They decide the model's sizes."""
    freeze: tuple[str, ...] = ()
    """Parameters to leave as they are, by path: blocks/*, patch_embed, */bias."""
    auto: tuple[str, ...] = ()
    """Settings to choose by the sizes of model and data set; a flag of their own overrules."""
    data: DigitsData | TfdsData | FolderData | ScenesData | MaskData | BoxData = field(default_factory=DigitsData)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    task: ClassificationConfig | SegmentationConfig | DetectionConfig = field(default_factory=ClassificationConfig)
    model: ViTConfig = field(default_factory=ViTConfig)
    optim: AdamW | Muon | SGD = field(default_factory=AdamW)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)


FREE = {"drop_path", "dropout", "dtype", "remat"}  # what pretrained weights leave open of a model's configuration

GONE = {"type", "fused"}  # in written configurations: the class's name, and what is no choice any more

# What may change between a run and its resumption; any other difference would make it another run.
MAY_CHANGE = {"workdir", "steps", "eval_every", "save_every", "log_every", "keep", "data.stream", "data.dir"}
MAY_CHANGE |= {"fsdp", "tensor", "distributed", "profile", "dry_run", "model.remat"}  # the same numbers but for rounding


def fields(config: Any, prefix: str = "", where: str = "the configuration") -> dict[str, tuple[Any, Any]]:
    """Every leaf field below a dataclass: dotted name → (type hint, value)."""
    leaves = {}
    hints = typing.get_type_hints(type(config), include_extras=True)
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        kinds = typing.get_args(hints[f.name]) or (hints[f.name],)
        classes = tuple(kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind))
        if classes and not isinstance(value, classes):
            given = type(value).__name__ if dataclasses.is_dataclass(value) else f"{value!r:.40}"
            fix = f"give {' or '.join(kind.__name__ for kind in classes)}"
            raise UserError(f"{prefix}{f.name} can't be {given}", where, fix)
        if dataclasses.is_dataclass(value):
            leaves |= fields(value, f"{prefix}{f.name}.", where)
        else:
            leaves[prefix + f.name] = (hints[f.name], value)
    return leaves


def validate(config: Any, where: str = "the configuration") -> None:
    """Raise `UserError` for the first value outside its range, and for values that contradict each other."""
    for name, (hint, value) in fields(config, where=where).items():
        check(name, hint, value, where)
    for bad, what, fix in _contradictions(config):
        if bad:
            raise UserError(what, where, f"give {fix}")


def _contradictions(config: Any) -> Iterator[tuple[Any, str, str]]:
    if isinstance(config, ViTConfig):
        what = f"--model.width {config.width} can't be shared by {config.heads} heads"
        yield config.width % config.heads, what, "a width that --model.heads divides"
        what = f"sin-cos positions can't fill --model.width {config.width}"
        yield config.position == "sincos" and config.width % 4, what, "a multiple of 4, or --model.position learned"
        what = f"rotary positions can't turn heads of {config.width // config.heads} values"
        yield config.rope != "none" and config.width // config.heads % 4, what, "heads of a multiple of 4"
        what = "--model.distilled needs a class token and a distillation token"
        yield config.distilled and not (config.pool == "token" and config.registers), what, "--model.pool token, registers 1"
        what = f"--model.final-norm pooled can't follow --model.pool {config.pool}"
        bad = config.final_norm == "pooled" and (config.pool == "token_mean" or config.distilled)
        yield bad, what, "--model.final-norm tokens"
    if isinstance(config, Config):
        yield from _contradictions(config.model)
        what = f"--batch-size {config.batch_size} can't be cut into --accumulate {config.accumulate} equal microbatches"
        yield config.batch_size % config.accumulate, what, "a batch size that --accumulate divides"
        what = f"--tensor {config.tensor} devices can't share {config.model.heads} heads"
        known = "model.heads" not in config.auto  # else weights will say
        yield known and config.model.heads % config.tensor, what, "a number that divides --model.heads"
        sizes, until = config.schedule.sizes, config.schedule.until
        what = f"--schedule.sizes has {len(sizes)} values, --schedule.until {len(until)}"
        yield len(sizes) != len(until), what, "a share of the steps for each size"
        what = f"--schedule.until {' '.join(map(str, until))} goes back"
        yield list(until) != sorted(until), what, "growing shares of the steps"
        bad = next((size for size in sizes if size % config.model.patch), None)
        yield bad, f"--schedule.sizes {bad} isn't a whole number of patches", f"multiples of {config.model.patch}"
        mean, std = len(config.data.mean), len(config.data.std)
        yield not mean, "--data.mean can't be ()", "one value, or one a channel"
        yield mean != std, f"--data.mean has {mean} values, --data.std {std}", "one of each a channel"
        yield from dense_contradictions(config)
        yield from detect_contradictions(config)
        if isinstance(config.data, TfdsData):
            what = "random crops can't be held in memory (--data.size without --data.stream)"
            yield config.data.size and not config.data.stream, what, "--data.stream"


def to_json(config: Any) -> Any:
    """A dataclass as plain JSON values; each carries the name of its class under "type"."""
    if dataclasses.is_dataclass(config):
        values = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"type": type(config).__name__, **values}
    return list(config) if isinstance(config, tuple) else config


def from_json(value: Any, where: str) -> Config:
    """The `Config` that `to_json` wrote; a field it lacks takes its default. Raises `UserError` on anything unknown."""
    kinds = (Config, *typing.get_args(Data), AugmentConfig, *typing.get_args(Task), *HEADS)
    known = {c.__name__: c for c in (*kinds, ViTConfig, AdamW, Muon, SGD, ScheduleConfig, LoraConfig)}

    def build(node: Any) -> Any:
        if isinstance(node, list):
            return tuple(node)
        if not isinstance(node, dict):
            return node
        kind = str(node.get("type", ""))
        rest = {key: build(item) for key, item in node.items() if key not in GONE}
        odd = sorted(rest.keys() - {f.name for f in dataclasses.fields(known[kind])}) if kind in known else [kind]
        if odd:
            what = f"its configuration can't be read: this version knows no {odd[0]!r}"
            raise UserError(what, where, "use the vit version that wrote it")
        return known[kind](**rest)

    config = build(value)
    validate(config, where)
    return config


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The fields on which a run and its resumption may not differ but do: name → (old, new)."""
    before, after = ({name: value for name, (_, value) in fields(c).items()} for c in (old, new))
    names = [f.name for f in dataclasses.fields(Config)]
    kinds = {name: tuple(type(getattr(config, name)).__name__ for config in (old, new)) for name in names}
    changed: dict[str, Any] = {name: pair for name, pair in kinds.items() if pair[0] != pair[1]}
    for name in before.keys() & after.keys() - MAY_CHANGE:
        if before[name] != after[name]:
            changed[name] = (before[name], after[name])
    return changed
