"""From the configuration to optax: schedule, parameter groups by path, optimiser, moving average."""

import re

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vit.config import SGD, AdamW, ScheduleConfig
from vit.models.vit import Params

DECAYED = r"kernel$"  # weight decay: not on biases, norms, positions, tokens


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


def optimizer(config: AdamW | SGD, clip: float) -> optax.GradientTransformation:
    """Gradients → the direction of descent; the train step scales it by the learning rate of the moment."""

    def decayed(params: Params) -> dict[str, bool]:
        return {path: re.search(DECAYED, path) is not None for path in params}

    decay = optax.add_decayed_weights(config.weight_decay, mask=decayed)
    first = optax.clip_by_global_norm(clip) if clip else optax.identity()
    if isinstance(config, AdamW):
        return optax.chain(first, optax.scale_by_adam(config.b1, config.b2), decay)
    return optax.chain(first, decay, optax.trace(config.momentum))


def ema_decay(decay: float, updates: Array) -> Float[Array, ""]:
    """The decay at a given number of updates: shorter at first, so that the start is forgotten."""
    return jnp.minimum(decay, (1 + updates) / (10 + updates))
