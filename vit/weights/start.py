"""How a run begins from pretrained weights: what they decide of its settings, and how they are made to fit its data."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit.config import FREE, Config, FolderData, ViTConfig, fields, from_json, validate
from vit.data.sources import describe, open_source
from vit.errors import UserError
from vit.limits import flag
from vit.models.positions import resample_positions
from vit.models.vit import patch_grid, split
from vit.tasks import make_task
from vit.training.checkpoint import Checkpoints
from vit.training.defaults import HEAD_ALONE, replaced, resolve
from vit.training.evaluate import Trained
from vit.weights.pretrained import Pretrained
from vit.weights.source import load

OF_CLASSES = {"kernel", "bias", "classify", "labels"}  # of a head: what other classes need anew


def settle(config: Config, workdir: Any) -> tuple[Config, Pretrained | None, list[str]]:
    """The settings with what the weights say, the weights where they are needed, and a line on each thing decided.

    A run that was begun already has its checkpoint say all that was chosen then, and the weights aren't opened again.
    Raises `UserError` for weights that can't be read, and for a model flag that contradicts them.
    """
    if not config.auto:
        return config, None, []
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        found = checkpoints.newest()
    if found:
        chosen = fields(from_json(found.meta["config"], f"{workdir}, step {found.step}"))
        config = replaced(config, {name: chosen[name][1] for name in config.auto if name in chosen})
        config = dataclasses.replace(config, auto=())
        validate(config, f"the settings with those of {workdir}")
        return config, None, []
    if not config.weights and (config.freeze == HEAD_ALONE or config.lora.rank):
        what = "all but the head is frozen" if config.freeze == HEAD_ALONE else "LoRA adds to weights that were trained"
        raise UserError(f"--weights is missing: {what}", "the command line", "give --weights, as runs/cifar10_cpu-s0")
    if not config.weights:
        auto = tuple(name for name in config.auto if name != "data.size")
        return dataclasses.replace(config, auto=auto), None, ["no --weights: this trains from scratch"]
    weights = load(config.weights)
    decided = {f"model.{f.name}": getattr(weights.config, f.name) for f in dataclasses.fields(ViTConfig) if f.name not in FREE}
    for name, value in decided.items():
        given = getattr(config.model, name.removeprefix("model."))
        if name not in config.auto and given != value:
            what = f"{flag(name)} is {given}, the weights have {value}"
            raise UserError(what, weights.source, f"remove {flag(name)}: the weights decide the model's sizes")
    if "data.size" in config.auto and "data.size" in fields(config):
        decided["data.size"] = max(weights.image_size)
    config = replaced(config, decided)
    config = dataclasses.replace(config, auto=tuple(name for name in config.auto if name not in decided))
    validate(config, f"the settings with those of {weights.source}")
    size, m = " x ".join(map(str, weights.image_size)), weights.config
    line = f"weights: {weights.source}: width {m.width}, {m.depth} blocks, patch {m.patch}, {weights.channels} channels, {size}"
    return config, weights, [line, *weights.notes]


def prepare(
    config: Config, weights: Pretrained | None, data: dict[str, Any], images: int
) -> tuple[Config, dict[str, np.ndarray], list[str]]:
    """The settings with all in `auto` chosen, the parameters to begin with, and a line on each thing decided.

    `data` is what `vit.data.sources.describe` says, `images` the number to train on.
    """
    task = make_task(config.task, config.model, data)
    shapes = jax.eval_shape(lambda: split(task.build(nnx.Rngs(0)))[1])
    params, lines = fitted(weights, data, shapes) if weights else ({}, [])
    if weights:
        fitting = {"data.mean": weights.mean, "data.std": weights.std}
        if len(weights.mean) not in (1, data["channels"]):
            fitting = {name: (float(np.mean(x)),) for name, x in fitting.items()}
        config = replaced(config, {name: x for name, x in fitting.items() if name in config.auto})
        config = dataclasses.replace(config, auto=tuple(name for name in config.auto if name not in fitting))
    if not config.auto:
        return config, params, lines
    config, chosen = resolve(config, images, sum(x.size for x in shapes.values()), bool(weights))
    return config, params, [*lines, *chosen]


def frozen(text: str, data: FolderData, size: int = 0) -> Trained:
    """Pretrained weights as a model of a data set's images, for its features; a head of other classes is zero.

    `size` is the images' side in pixels, 0 for the weights' own.

    Raises `UserError` for weights that can't be read, and for images that can't be.
    """
    weights = load(text)
    data = dataclasses.replace(data, size=size or max(weights.image_size))
    config = Config(data=data, model=weights.config, auto=("data.mean", "data.std"))
    described = describe(open_source(data, "train"))
    config, params, lines = prepare(config, weights, described, 0)
    task = make_task(config.task, config.model, described)
    shapes = jax.eval_shape(lambda: split(task.build(nnx.Rngs(0)))[1])
    params = {**{path: np.zeros(x.shape, x.dtype) for path, x in shapes.items()}, **params}
    return Trained(config, task, params, {"data": described}, 0, Path(weights.source), [*weights.notes, *lines])


def fitted(weights: Pretrained, data: dict[str, Any], shapes: dict[str, Any]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The pretrained parameters as a model of this data has them, without a head that begins anew, and a line on each change.

    `data` is what `vit.data.sources.describe` says, `shapes` are those of the new model's parameters.
    """
    params, lines = dict(weights.params), []
    height, width = data["image_size"]
    old, new = patch_grid(weights.config, *weights.image_size), patch_grid(weights.config, height, width)
    if "pos_embed" in params and old != new:
        params["pos_embed"] = _resampled(params["pos_embed"], old, new, weights.config.resample)
        lines.append(f"positions resampled from {old[0]} x {old[1]} patches to {new[0]} x {new[1]}")
    if data["channels"] != weights.channels:
        first = "patch_embed/proj/kernel" if "patch_embed/proj/kernel" in params else "patch_embed/convs/0/kernel"
        params[first] = with_channels(params[first], weights.channels, data["channels"])
        how = "summed over" if data["channels"] == 1 else "repeated and scaled from"
        lines.append(f"the embedding of {data['channels']} channels is {how} the weights' {weights.channels}")
    if "head/middle" in params and "head/middle" in shapes:  # YOLOS's positions between the blocks
        params["head/middle"] = _resampled(params["head/middle"], old, new, weights.config.resample)
    old, new = ({path: x.shape for path, x in those.items() if path.startswith("head")} for those in (params, shapes))
    if weights.class_names == data["class_names"] and old == new:
        return params, [*lines, f"the head is kept: the same {len(data['class_names'])} classes"]
    body = {path: shape for path, shape in new.items() if path.split("/")[1] not in OF_CLASSES}
    fits = bool(body) and body == {path: shape for path, shape in old.items() if path.split("/")[1] not in OF_CLASSES}
    params = {path: x for path, x in params.items() if path not in old or (fits and path in body)}
    theirs = f"{weights.classes} others" if weights.classes else "none"
    what = "the head is kept, but what tells classes begins anew" if fits else "the head begins anew, at zero"
    return params, [*lines, f"{what}: {len(data['class_names'])} classes, the weights know {theirs}"]


def _resampled(table: np.ndarray, old: tuple[int, int], new: tuple[int, int], method: Any) -> np.ndarray:
    """Positions (L, N, D) of patches, and of tokens that stand before them, for another grid."""
    before = table.shape[1] - old[0] * old[1]
    patches = [np.asarray(resample_positions(jnp.asarray(x[None, before:]), old, new, method)) for x in table]
    return np.concatenate([table[:, :before], np.concatenate(patches)], axis=1)


def with_channels(kernel: np.ndarray, old: int, new: int) -> np.ndarray:
    """An embedding's kernel, inputs last but one and channels innermost of them, for other channels, as timm has it.

    Grey: the sum. More: repeated and scaled by old / new, so that a grey image in colour gives what it gave.
    """
    parts = kernel.reshape(*kernel.shape[:-2], -1, old, kernel.shape[-1])
    if new == 1:
        parts = parts.sum(axis=-2, keepdims=True)
    else:
        parts = np.concatenate([parts] * -(-new // old), axis=-2)[..., :new, :] * np.float32(old / new)
    return parts.reshape(*kernel.shape[:-2], -1, kernel.shape[-1])
