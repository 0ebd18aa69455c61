"""How a state moves: pure functions on dicts of arrays, compiled once each.

The state holds `params` (path → array), `opt` (optax's) and `ema` (path → array, or empty) of those parameters that are
trained, and counters: `step` (updates tried), `offset` (batches stepped over), `skipped` (updates not made), `streak` (of
those, in a row now) and `rollbacks`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from vit.config import Config
from vit.data.augment import resize
from vit.models.attention import platform
from vit.models.vit import Params, merge, split
from vit.training import lora
from vit.training.optim import ema_decay, learning_rate, optimizer
from vit.training.sharding import on
from vit.training.trained import trained

State = dict[str, Any]
Batch = dict[str, Array]  # image (B, H, W, C) uint8, label (B,) or (B, H, W), id (B,), mask (B,)
Prepare = Callable[[Batch, Key[Array, "B"] | None], Batch]  # normalise; with keys, augment


def init_state(build: Callable[[nnx.Rngs], nnx.Module], config: Config, start: dict[str, Any] | None = None) -> State:
    """The state before the first update; parameters in `start` take the place of freshly drawn ones."""
    _, params = split(build(nnx.Rngs(config.seed)))
    return _first({**params, **jax.tree.map(jnp.asarray, start or {})}, config)


def state_shapes(task: Any, config: Config) -> State:
    """The shapes of a task's state."""
    return jax.eval_shape(lambda params: _first(params, config), task.abstract[1])


def _first(params: Params, config: Config) -> State:
    params = lora.add(params, config.lora, config.seed)
    moving, _ = parted(config, params)
    counters = {name: jnp.zeros((), jnp.int32) for name in ("step", "offset", "skipped", "streak", "rollbacks")}
    ema = jax.tree.map(jnp.copy, moving) if config.ema else {}
    opt = optimizer(config.optim, config.clip, config.model).init(moving)
    return {"params": params, "opt": opt, "ema": ema, **counters}


def parted(config: Config, params: Params) -> tuple[Params, Params]:
    """The parameters that are trained, and the others."""
    names = set(trained(config, params))
    return {p: x for p, x in params.items() if p in names}, {p: x for p, x in params.items() if p not in names}


def example_keys(seed: int, index: Int[Array, ""], ids: Int[Array, "B"]) -> Key[Array, "B"]:
    """One key an example from (seed, batch index, example id): the same on any devices and in any microbatch."""
    key = jax.random.fold_in(jax.random.key(seed), index)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)


def make_train_step(task: Any, prepare: Prepare, config: Config, like: State | None = None) -> Callable[..., Any]:
    """One update: (state, batch) → (state, metrics), jitted; the old state's memory is reused.

    A third argument is the side in pixels that the images are shrunk to, 0 for none; each side is compiled once. The new
    state lives where `like`, shapes that know their sharding, says; without it, where XLA puts it.
    An update whose loss or gradient is not finite, or that would overflow the parameters, is not made: only counted.
    """
    schedule = learning_rate(config.schedule, config.optim.lr, config.steps)
    optim = optimizer(config.optim, config.clip, config.model)

    def mean_loss(moving: Params, frozen: Params, batch: Batch, keys: Key[Array, "B"], total: Array) -> Float[Array, ""]:
        losses = task.loss(merge(task.graph, lora.merged({**frozen, **moving})), batch, keys)
        return jnp.sum(losses * batch["mask"]) / total

    def loss_and_gradient(moving: Params, frozen: Params, batch: Batch, keys: Key[Array, "B"]) -> tuple[Array, Params]:
        """Of the whole batch, one microbatch after the other."""
        total = jnp.maximum(batch["mask"].sum(), 1)
        if config.accumulate == 1:
            return jax.value_and_grad(mean_loss)(moving, frozen, batch, keys, total)

        def add(sums: tuple[Array, Params], part: tuple[Batch, Array]) -> tuple[tuple[Array, Params], None]:
            return jax.tree.map(jnp.add, sums, jax.value_and_grad(mean_loss)(moving, frozen, *part, total)), None

        # Every device gives a share of each microbatch: example i goes to microbatch i mod accumulate.
        parts = jax.tree.map(lambda x: x.reshape(-1, config.accumulate, *x.shape[1:]).swapaxes(0, 1), (batch, keys))
        zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, moving)
        return jax.lax.scan(add, zero, parts)[0]

    def train_step(state: State, batch: Batch, size: int = 0) -> tuple[State, dict[str, Array]]:
        keys = example_keys(config.seed, state["step"] + state["offset"], batch["id"])
        batch = prepare(batch, keys)  # the whole of it: mixing takes an image's neighbour
        batch["progress"] = jnp.full(keys.shape, state["step"] / config.steps)  # what a loss may anneal by, for every example
        if size:
            batch = {**batch, "image": resize(batch["image"], size)}
        moving, frozen = parted(config, state["params"])
        loss, gradient = loss_and_gradient(moving, frozen, batch, keys)
        lr = jnp.asarray(schedule(state["step"]))
        norm = optax.tree.norm(gradient)
        good = jnp.isfinite(loss) & jnp.isfinite((lr * jnp.maximum(norm, 1)) ** 2)  # AdamW's and Muon's update is about lr

        def updated(old: State) -> State:
            direction, opt = optim.update(gradient, old["opt"], old["params"])
            params = jax.tree.map(lambda p, d: p - lr * d, old["params"], direction)
            decay, averaged = ema_decay(config.ema, state["step"]), params if config.ema else {}
            ema = jax.tree.map(lambda e, p: e * decay + p * (1 - decay), old["ema"], averaged)
            return {"params": params, "opt": opt, "ema": ema}

        new = only_if(good, updated, {"params": moving, "opt": state["opt"], "ema": state["ema"]})
        new["params"] = {**frozen, **new["params"]}
        counters = {
            "step": state["step"] + 1,
            "offset": state["offset"],
            "skipped": state["skipped"] + ~good,
            "streak": jnp.where(good, 0, state["streak"] + 1),
            "rollbacks": state["rollbacks"],
        }
        return {**new, **counters}, {"loss": loss, "grad_norm": norm, "lr": lr, "streak": counters["streak"]}

    located = (jax.tree.map(lambda x: x.sharding, like), None) if like else None
    return jax.jit(on(like, train_step), donate_argnums=0, static_argnames="size", out_shardings=located)


def only_if(good: Array, update: Callable[[State], State], old: State) -> State:
    """`update(old)` if good, else `old`: a branch, which needs no memory; on a GPU, where it waits for the host, a choice."""
    if platform() == "gpu":
        return jax.tree.map(lambda n, o: jnp.where(good, n, o), update(old), old)
    return jax.lax.cond(good, update, lambda old: old, old)


def make_eval_step(task: Any, prepare: Prepare) -> Callable[[Params, Batch], Array]:
    """(params, batch) → the task's outputs of each example, without augmentation or dropout, jitted."""

    def eval_step(params: Params, batch: Batch) -> Any:
        return task.outputs(merge(task.graph, params), prepare(batch, None))

    return jax.jit(eval_step)


def make_feature_step(task: Any, prepare: Prepare) -> Callable[[Params, Batch], Array]:
    """(params, batch) → each example's pooled vector, before a tanh layer and the head, jitted."""
    return jax.jit(lambda params, batch: merge(task.graph, params)(prepare(batch, None)["image"])[1]["pooled"])


def evaluated(state: State) -> Params:
    """The parameters that are evaluated and predicted with: the moving average where there is one, LoRA's factors merged."""
    return lora.plain({**state["params"], **state["ema"]})
