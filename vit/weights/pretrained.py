"""What a weights file holds, whoever wrote it."""

import dataclasses
from typing import Any, Literal, NamedTuple

import numpy as np

from vit.config import ViTConfig
from vit.errors import UserError
from vit.limits import flag
from vit.models.vit import prefix_tokens

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Found(NamedTuple):
    """What was read before it is understood: arrays by their names there, and what stood beside them.

    `config` and `preprocessor` are JSON files as Hugging Face has them, `ours` what this program wrote when it made the file,
    `name` the model's as far as known, `where` the place for errors.
    """

    arrays: dict[str, np.ndarray]
    config: dict[str, Any]
    preprocessor: dict[str, Any]
    ours: dict[str, Any]
    name: str
    where: str


class Pretrained(NamedTuple):
    """Parameters by path, complete for `ViT(config, image_size=…, channels=…, classes=…)`, and what else the file tells.

    With a `head` they are for `Eomt(config, head, …)` or `Yolos(config, head, …)`.
    """

    params: dict[str, np.ndarray]
    config: ViTConfig
    image_size: tuple[int, int]
    """(H, W) in pixels that the positions are made for."""
    channels: int
    classes: int
    """0: no head."""
    class_names: list[str]
    """Empty where the file tells none."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per-channel mean and deviation of pixels in [0, 1] that the weights expect."""
    source: str
    notes: list[str]
    """What had to be assumed or was left out, a line on each."""
    head: Any = None
    """What stands on the backbone (`EomtHead`, `YolosHead`) instead of a classifier; its parameters lie below `head/`."""


def changed(config: ViTConfig, **changes: Any) -> ViTConfig:
    """The same configuration with other values."""
    return dataclasses.replace(config, **changes)


def refuse_unless(w: Pretrained, layout: str, **allowed: tuple[Any, ...]) -> None:
    """Raise `UserError` for the first setting of a model that a layout can't express."""
    for name, values in allowed.items():
        value = getattr(w.config, name)
        if value not in values:
            what = f"{layout} has no place for a model with {flag(f'model.{name}')} {value}"
            raise UserError(what, w.source, f"choose another layout, or a model with {' or '.join(map(str, values))}")


def covering(w: Pretrained, positioned: Literal["all", "class", "patches"]) -> Pretrained:
    """The same model with a table of positions that covers other tokens: zeros are added, or rows go into their tokens."""
    if w.config.position != "learned":
        return w
    config = changed(w.config, positioned=positioned)
    prefix, old = prefix_tokens(w.config)
    new, params = prefix_tokens(config)[1], dict(w.params)
    table = params["pos_embed"]
    rows, rest = table[:, : min(old, new)], table[:, old:]
    zeros = np.zeros((1, max(0, new - old), config.width), np.float32)
    params["pos_embed"] = np.concatenate([rows, zeros, rest], axis=1)
    names = [name for name in ("cls_token", "registers") if name in params]
    if old > new:
        tokens = np.concatenate([params[name] for name in names], axis=1)
        tokens[:, new:old] += table[:, new:old]
        first = prefix - config.registers
        params |= dict(zip(names, np.split(tokens, [first], axis=1) if len(names) > 1 else [tokens], strict=True))
    return w._replace(config=config, params=params)
