"""Settings that follow from the sizes of model and data set, each with its reason. A run names them in `Config.auto`.

Where the figures come from: BiT-HyperRule (arXiv 1912.11370, section 3.3) for how long and for mixup; MAE's fine-tuning (arXiv
2111.06377, table 9, and its FINETUNE.md) for B and L. The others are ours: docs/decisions/0010-finetuning.md.
"""

import dataclasses
import difflib
from typing import Any, NamedTuple

from vit.config import Config, fields
from vit.errors import UserError
from vit.limits import flag


class Size(NamedTuple):
    """What suits models of up to so many parameters: learning rate at a batch of 256, layer decay, drop path."""

    name: str
    parameters: float
    lr: float
    layer_decay: float
    drop_path: float


SIZES = (
    Size("smaller than Ti", 4e6, 4e-3, 0.9, 0.0),
    Size("the size of Ti", 12e6, 2e-3, 0.9, 0.0),
    Size("the size of S", 45e6, 1e-3, 0.8, 0.0),
    Size("the size of B", 150e6, 5e-4, 0.65, 0.1),
    Size("the size of L", 450e6, 1e-3, 0.75, 0.2),
    Size("larger than L", float("inf"), 1e-3, 0.75, 0.3),
)
HEAD_ALONE = ("[!h]*",)  # to freeze: all but head and head_dist
ADDED = 2e-3  # learning rate at a batch of 256 of what starts at zero: a head alone, LoRA's factors


def resolve(config: Config, images: int, parameters: int, pretrained: bool) -> tuple[Config, list[str]]:
    """The settings with those in `auto` chosen, and a line on each.

    Args:
      config: settings, of which `auto` may be changed.
      images: number of training images.
      parameters: of the whole model.
      pretrained: whether it begins from pretrained weights.

    Raises `UserError` for a name in `auto` that nothing is chosen for.
    """
    lines = []
    for name in sorted(config.auto, key=lambda name: ORDER.index(name) if name in ORDER else -1):
        if name not in fields(config) or name not in ORDER:
            near = difflib.get_close_matches(name, ORDER, n=1, cutoff=0.0)[0]
            raise UserError(f"--auto can't choose {name!r:.60}", "the configuration", f"give names of settings, as {near}")
        value, why = choose(name, config, images, parameters, pretrained)
        config = replaced(config, {name: value})
        shown = (
            " ".join(value) or "nothing" if isinstance(value, tuple) else f"{value:.6g}" if isinstance(value, float) else value
        )
        lines.append(f"chosen: {flag(name)} {shown} ({why})")
    return dataclasses.replace(config, auto=()), lines


# In this order: a choice may rest on those before it.
ORDER = [
    "freeze", "steps", "schedule.warmup", "optim.lr", "optim.layer_decay", "model.drop_path", "augment.randaugment",
    "augment.mixup", "augment.cutmix", "task.label_smoothing", "ema", "eval_every", "save_every", "log_every",
]  # fmt: skip


def choose(name: str, config: Config, images: int, parameters: int, pretrained: bool) -> tuple[Any, str]:
    """One setting's value and the reason for it."""
    size = next(size for size in SIZES if parameters <= size.parameters)
    seen = f"{images:,} training images"
    probing, batch, every = config.freeze == HEAD_ALONE, config.batch_size, max(1, config.steps // 10)
    if name == "freeze":
        few = pretrained and not config.lora.rank and images < 500 and parameters > 12e6
        if few:
            return HEAD_ALONE, f"{seen} are few for {parameters / 1e6:.0f} M parameters: the head alone is trained"
        if config.lora.rank:
            return (), "LoRA trains its factors and the head alone"
        return (), f"{seen} for {parameters / 1e6:.3g} M parameters" if pretrained else "no weights to keep"
    if name == "steps":
        total = 256_000 if images < 20_000 else 5_120_000 if images < 500_000 else 10_240_000
        steps = max(10, min(total, 100 * images) // batch)
        why = f"{steps * batch / images:.3g} epochs of {seen}"
        return steps, f"{why}: BiT's rule" if total < 100 * images else f"{why}, the most"
    if name == "schedule.warmup":
        return config.steps // 20, "5 % of the steps"
    if name == "optim.lr":
        if probing or config.lora.rank:
            return ADDED * batch / 256, f"{ADDED} at a batch of 256, for a head or LoRA's factors, which start at zero"
        return size.lr * batch / 256, f"{size.lr} at a batch of 256, for a model {size.name}"
    if name == "optim.layer_decay":
        if probing or config.lora.rank or not pretrained:
            return 1.0, "all that is trained starts anew"
        return size.layer_decay, f"a model {size.name}, whose early layers are worth keeping"
    if name == "model.drop_path":
        return (0.0, "the head alone is trained") if probing else (size.drop_path, f"a model {size.name}")
    if name == "augment.randaugment":
        return (2, f"{seen}") if images >= 20_000 and not probing else (0, "crops and flips are enough here: BiT's rule")
    if name == "augment.mixup":
        if images >= 500_000 and not probing:
            return 0.8, f"{seen}: as MAE"
        return (0.1, f"{seen}: BiT's rule") if images >= 20_000 and not probing else (0.0, "under 20,000 images: BiT's rule")
    if name == "augment.cutmix":
        return (1.0, f"{seen}: as MAE") if images >= 500_000 and not probing else (0.0, "under 500,000 images")
    if name == "task.label_smoothing":
        return (0.0, "a linear probe") if probing else (0.1, "as MAE, BEiT and DeiT fine-tune")
    if name == "ema":
        window = max(1, config.steps // 50)
        return round(1 - 1 / window, 6), f"an average over the last {window} updates or so, 2 % of the steps"
    return (max(1, every // 10), "a hundred lines") if name == "log_every" else (every, "ten times")


def replaced(config: Any, values: dict[str, Any]) -> Any:
    """A dataclass with other values of some fields, named with dots."""
    for name, value in values.items():
        outer, _, rest = name.partition(".")
        value = replaced(getattr(config, outer), {rest: value}) if rest else value
        config = dataclasses.replace(config, **{outer: value})
    return config
