"""From the configuration to optax: schedule, parameter groups by path, optimiser, moving average."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Float

from vit.config import SGD, AdamW, Muon, ScheduleConfig, ViTConfig
from vit.models.vit import Params

DECAYED = r"kernel$"  # weight decay: not on biases, norms, positions, tokens
MATRICES = r"^blocks/.*kernel$"  # what Muon makes orthogonal
EMBEDDING = r"^(patch_embed|pos_embed|cls_token|registers|pre_norm)\b"  # layer 0 of layer-wise decay


def learning_rate(config: ScheduleConfig, peak: float, steps: int) -> optax.Schedule:
    """Learning rate of update t = 0, 1, …: warm-up to `peak`, then down to 0 at t = `steps`, or constant."""
    warmup = optax.linear_schedule(peak / (config.warmup + 1), peak, config.warmup)
    rest = max(1, steps - config.warmup)  # a short trial may end within the warm-up
    after = {
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "constant": optax.constant_schedule(peak),
    }[config.decay]
    return optax.join_schedules([warmup, after], [config.warmup])


def image_size(config: ScheduleConfig, step: int, steps: int) -> int:
    """The side that the images of update `step` are shrunk to; 0 for the full size."""
    return next((size for size, share in zip(config.sizes, config.until, strict=True) if step < round(share * steps)), 0)


def layer_scale(path: str, decay: float, model: ViTConfig) -> float:
    """A parameter's share of the learning rate, as timm groups layers: decay ** (depth + 1 - layer).

    The embedding is layer 0, block i layer i + 1, a norm of all tokens goes with the last block, all behind is layer depth + 1.
    """
    block, top = re.match(r"blocks/(\d+)/", path), model.depth + 1
    behind = top - (path.startswith("norm/") and model.final_norm == "tokens")
    layer = int(block[1]) + 1 if block else 0 if re.match(EMBEDDING, path) else behind
    return decay ** (top - layer)


def optimizer(config: AdamW | Muon | SGD, clip: float, model: ViTConfig) -> optax.GradientTransformation:
    """Gradients → the direction of descent; the train step scales it by the learning rate of the moment.

    `model` tells its layers, for layer-wise decay.
    """
    if config.layer_decay < 1:

        def scaled(updates: Any, _: Any) -> Params:
            return {path: layer_scale(path, config.layer_decay, model) * x for path, x in updates.items()}

        return optax.chain(optimizer(dataclasses.replace(config, layer_decay=1.0), clip, model), optax.stateless(scaled))

    def decayed(params: Params) -> dict[str, bool]:
        return {path: re.search(DECAYED, path) is not None for path in params}

    decay = optax.add_decayed_weights(config.weight_decay, mask=decayed)
    first = optax.clip_by_global_norm(clip) if clip else optax.identity()
    if isinstance(config, AdamW):
        return optax.chain(first, optax.scale_by_adam(config.b1, config.b2), decay)
    if isinstance(config, Muon):

        def kinds(params: Params) -> dict[str, str]:
            return {path: "matrix" if re.search(MATRICES, path) else "other" for path in params}

        adam = optax.scale_by_adam(config.b1, config.b2)
        return optax.chain(first, optax.partition({"matrix": orthogonal(config.momentum), "other": adam}, kinds), decay)
    return optax.chain(first, decay, optax.trace(config.momentum))


def orthogonal(momentum: float) -> optax.GradientTransformation:
    """Muon's update of matrices: the momentum made orthogonal, then as large as an update of AdamW (RMS 0.2)."""
    sized = optax.stateless(lambda updates, _: jax.tree.map(lambda u: 0.2 * max(u.shape) ** 0.5 * u, updates))
    axes = lambda params: jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), params)  # noqa: E731
    return optax.chain(optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=axes), sized)


def ema_decay(decay: float, updates: Array) -> Float[Array, ""]:
    """The decay at a given number of updates: shorter at first, so that the start is forgotten."""
    return jnp.minimum(decay, (1 + updates) / (10 + updates))
