"""Train a Vision Transformer.

    uv run train.py                                  # handwritten digits, about two minutes on two cores
    uv run train.py --config configs/digits.py --workdir runs/x --seed 1 --optim.lr 5e-4
    uv run train.py --help                           # every setting

The same command again resumes where it was stopped. Exit codes: 0 done, 2 a mistake in what was asked (three lines say
what, where and how to mend it), 75 stopped by Ctrl-C or SIGTERM and saved.
"""

import sys
from pathlib import Path

from vit.config import Config, fields, flag, to_json
from vit.errors import told_to_the_user
from vit.flags import parse_config
from vit.training.stop import Stop

DEFAULT = Path(__file__).parent / "configs" / "digits.py"


def main(config: Config, stop: Stop) -> None:
    """Configuration → mesh → data → task → state → loop → evaluation."""
    # Here and not above, so that a mistyped flag is answered at once and a signal during these seconds is heard.
    import jax

    from vit.data.augment import make_prepare, preprocessing
    from vit.data.batches import Batches, once
    from vit.data.sources import describe, open_source
    from vit.report import pictures, results
    from vit.tasks import make_task
    from vit.training import evaluate, workdir
    from vit.training.checkpoint import Checkpoints
    from vit.training.log import Log
    from vit.training.loop import Loop
    from vit.training.sharding import make_mesh, replicated
    from vit.training.state import evaluated, init_state, make_eval_step, make_train_step

    # ---- where: devices and folder ----
    mesh = make_mesh(config.batch_size, config.accumulate)
    run = Path(config.workdir)
    lock = workdir.open_workdir(run)
    checkpoints = Checkpoints(run / "checkpoints", config.keep)
    found = checkpoints.newest()
    workdir.check_resumable(config, run, found)
    aside = checkpoints.sweep(found.damaged if found else ())
    workdir.write_config(run, config)
    log = Log(run, found.step if found else 0, config.steps)
    for (step, damage), name in zip(found.damaged.items() if found else (), aside, strict=True):
        log.say(f"checkpoint {step} is damaged ({damage}): kept aside as checkpoints/{name}")

    # ---- what: data and task ----
    train_source, val_source = open_source(config.data, "train"), open_source(config.data, "val")
    data = describe(train_source)
    task = make_task(config.task, config.model, data)
    prepare = make_prepare(config.data, config.augment)
    part = jax.process_index(), jax.process_count()
    batches = Batches(train_source, config.seed, config.batch_size, part, config.data.stream)

    # ---- the state. A run starts in one of two ways: fresh, or from the newest checkpoint of its folder ----
    shapes = jax.eval_shape(lambda: init_state(task.build, config))
    if found:
        state = checkpoints.restore(found.step, shapes, replicated(mesh))
        scores = found.meta["scores"]
    else:
        state = jax.device_put(init_state(task.build, config), replicated(mesh))
        scores = {}

    parameters = sum(x.size for x in shapes["params"].values())
    log.say(" ".join(f"{flag(name)} {value}" for name, (_, value) in fields(config).items()))
    log.say(f"{data['dataset']}: {len(train_source):,} images to train on, {len(val_source):,} to validate")
    log.say(f"{parameters:,} parameters, {task.flops() / 1e9:.3g} GFLOPs an image, {mesh.size} × {jax.devices()[0].device_kind}")
    log.say(f"resuming {run} from step {found.step}" if found else f"starting {run} afresh")

    # ---- the loop ----
    train_step, eval_step = make_train_step(task, prepare, config), make_eval_step(task, prepare)
    if not found:
        first = next(batches.starting_at(0))
        pictures.train_batch(run / "train_batch.png", first, prepare, config, task.class_names)

    def validate(state: dict) -> dict:
        split = once(val_source, config.batch_size, part)
        return evaluate.evaluate(task, eval_step, evaluated(state), split, mesh, lambda: stop.check("stopped"))[0]

    meta = {
        "config": to_json(config),
        "data": data,
        "preprocessing": preprocessing(config.data, data),
        "versions": workdir.versions(),
        "scores": scores,
    }
    loop = Loop(config, state, train_step, batches, validate, task, mesh, checkpoints, log, stop, meta)
    try:
        loop.run()
    finally:
        log.close()
        checkpoints.close()
        pictures.curves(run)

    # ---- the test split, with what the last checkpoint holds ----
    model = evaluate.open_run(run, "last")
    figures, examples = evaluate.evaluate_split(model, "test", stop)
    results.write(run, model, figures, examples)
    log.say(f"the run is in {run}: eval.json, predictions.npz, curves.png, confusion.png, train_batch.png")
    lock.close()


if __name__ == "__main__":
    stop = Stop.listen()
    with told_to_the_user():
        main(parse_config(sys.argv[1:], DEFAULT), stop)
