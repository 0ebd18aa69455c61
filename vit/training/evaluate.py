"""Figures of a split, every example counted once."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from vit.config import Config, from_json
from vit.data.augment import make_prepare
from vit.data.batches import once
from vit.data.sources import Source, describe, open_source
from vit.errors import Stopped, UserError
from vit.tasks import make_task
from vit.training.checkpoint import Checkpoints, Damaged, best_step
from vit.training.log import track
from vit.training.sharding import anywhere, collect, distribute, make_mesh, place, replicated
from vit.training.state import make_eval_step
from vit.training.stop import Stop


class Trained(NamedTuple):
    """A trained model, as a checkpoint tells it: everything needed to use it."""

    config: Config
    task: Any
    params: dict[str, np.ndarray]
    meta: dict[str, Any]
    step: int
    where: Path
    warnings: list[str]


def open_run(workdir: Path, checkpoint: str) -> Trained:
    """The model of a run at `checkpoint`: "last", "best" (by validation) or a step. Changes nothing there.

    A damaged last or best checkpoint is passed over for the next one, and a warning says so.
    Raises `UserError` if there's no such run, step, or good checkpoint.
    """
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        found = checkpoints.newest()
        if found is None:
            raise UserError("there is no trained model here", str(workdir), "give the --workdir of a run of train.py")
        step, meta, damaged = found
        if checkpoint == "best":
            while (wanted := best_step(found.meta["scores"], [s for s in checkpoints.steps() if s not in damaged])) is not None:
                try:
                    step, meta = wanted, checkpoints.verify(wanted)
                    break
                except Damaged as damage:
                    damaged[wanted] = str(damage)
        elif checkpoint != "last":
            damaged = {}
            step, meta = _named(checkpoints, checkpoint, found.step)
        warnings = [f"checkpoint {s} is damaged ({damage})" for s, damage in damaged.items()]
        config = from_json(meta["config"], f"{workdir}, step {step}")
        task = make_task(config.task, config.model, meta["data"])
        params = checkpoints.params(step)
    return Trained(config, task, params, meta, step, workdir, warnings)


def evaluate_split(model: Trained, split: str, stop: Stop) -> tuple[dict[str, Any], dict[str, np.ndarray], Source]:
    """Figures of a split as eval.json has them; what the task keeps of each example; and the split, in the same order."""
    source = open_source(model.config.data, split)
    described = describe(source)
    if unlike := _unlike(described, model.meta["data"]):
        here, there = unlike
        what = f"the data has {here}, the model was trained on {there}"
        raise UserError(what, str(model.where), "evaluate on the data set that it was trained on")
    figures, examples = _summed(model.task, over(model, source, split, make_eval_step, stop))
    return {"task": model.task.name, "dataset": source.name, "split": split, "step": model.step, **figures}, examples, source


def over(
    model: Trained, source: Source, split: str, make_step: Callable[..., Callable[..., Any]], stop: Stop
) -> Iterator[dict[str, np.ndarray]]:
    """Batch by batch of a split what a step, made of task and preparation, gives, as `outputs`, and all else that's known."""
    config, mesh = model.config, make_mesh()
    size = -(-config.batch_size // mesh.size) * mesh.size  # the devices here may be others than in training
    step = make_step(model.task, make_prepare(config.data, config.augment))
    everywhere = replicated(mesh)
    like = {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere) for path, x in model.params.items()}
    params = distribute(model.params, like)
    batches = once(source, size, (jax.process_index(), jax.process_count()), config.data.stream)
    batches = track(batches, -(-len(source) // size), f"evaluating {split}")
    message = "stopped before the evaluation was done; run the same command to do it again"
    return _seen(step, params, batches, mesh, lambda: check_stop(stop, mesh, message))


def _unlike(data: dict[str, Any], trained: dict[str, Any]) -> tuple[str, str] | None:
    """What keeps a model from being evaluated on this data, in words of each of the two."""
    here, there = data["class_names"], trained["class_names"]
    if len(here) != len(there):
        return f"{len(here)} classes", str(len(there))
    for i, (name, other) in enumerate(zip(here, there, strict=True)):
        if name != other:
            return f"{name!r:.40} as its class {i}", f"{other!r:.40}"
    if data["channels"] != trained["channels"]:
        return f"images of {data['channels']} channels", str(trained["channels"])
    return None


def check_stop(stop: Stop, mesh: Mesh, message: str) -> None:
    """Raise `Stopped` in all processes if one of them was asked to stop."""
    if bool(anywhere(stop.asked.is_set(), mesh)):
        raise Stopped(message)


def _named(checkpoints: Checkpoints, name: str, good: int) -> tuple[int, dict[str, Any]]:
    if name not in map(str, checkpoints.steps()):
        steps = ", ".join(map(str, checkpoints.steps()))
        raise UserError(f"there is no checkpoint {name!r}", str(checkpoints.folder), f"give last, best, or one of {steps}")
    try:
        return int(name), checkpoints.verify(int(name))
    except Damaged as damage:
        what, fix = f"checkpoint {name} is damaged: {damage}", f"give --checkpoint last (step {good} is good)"
        raise UserError(what, str(checkpoints.folder), fix) from damage


def evaluate(
    task: Any,
    eval_step: Callable[..., Any],
    params: dict[str, Any],
    batches: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
    check: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The task's figures, and what it keeps of each example.

    Padding (mask False) is dropped before anything is counted. `check` is called between batches and may raise. In a run
    of several processes each gives its part of the batches, and all get the figures and examples of the whole.
    """
    return _summed(task, _seen(eval_step, params, batches, mesh, check))


def _seen(
    step: Callable[..., Any], params: dict[str, Any], batches: Iterable[Any], mesh: Mesh, check: Callable[[], None]
) -> Iterator[dict[str, np.ndarray]]:
    for batch in batches:
        check()
        placed = place(batch, mesh)
        known = {name: x for name, x in placed.items() if name != "image"}
        seen = collect({"outputs": step(params, placed), **known})
        real = seen.pop("mask")
        yield jax.tree.map(lambda x: x[real], seen)  # noqa: B023


def _summed(task: Any, batches: Iterable[dict[str, np.ndarray]]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    sums: dict[str, np.ndarray] = {}
    kept: dict[str, list[np.ndarray]] = {}
    for seen in batches:
        outputs = seen.pop("outputs")
        for name, x in task.kept(outputs, seen).items():
            kept.setdefault(name, []).append(x)
        for name, x in task.metrics(outputs, seen).items():
            sums[name] = sums.get(name, 0) + x
    examples = {name: np.concatenate(parts) for name, parts in kept.items()}
    return task.summary(sums, examples), examples
