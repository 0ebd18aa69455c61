"""Train a Vision Transformer.

    uv run train.py                                  # handwritten digits, a minute and a half on two cores
    uv run train.py --config configs/digits.py --workdir runs/x --seed 1 --optim.lr 5e-4
    uv run train.py --help                           # every setting

The same command again resumes where it was stopped. Exit codes: 0 done, 2 a mistake in what was asked (three lines say
what, where and how to mend it), 75 stopped by Ctrl-C or SIGTERM and saved.
"""

import sys
import time
from pathlib import Path

from vit.config import Config, to_json
from vit.errors import told_to_the_user
from vit.flags import as_flags, parse_config
from vit.training.stop import Stop

DEFAULT = Path(__file__).parent / "configs" / "digits.py"


def main(config: Config, stop: Stop) -> None:
    """Configuration → data → task → folder → state → loop → evaluation."""
    # Here and not above, so that a mistyped flag is answered at once and a signal during these seconds is heard.
    import jax

    from vit.data.augment import make_prepare, preprocessing
    from vit.data.batches import Batches, once
    from vit.data.sources import describe, open_source, splits
    from vit.report import pictures, results
    from vit.tasks import make_task
    from vit.training import evaluate, hosts, storage, workdir
    from vit.training.checkpoint import Checkpoints
    from vit.training.log import Log, matmul_speed
    from vit.training.loop import Loop
    from vit.training.sharding import check_batch_size, distribute, make_mesh, state_shardings
    from vit.training.state import evaluated, init_state, make_eval_step, make_train_step

    # ---- what: data, task, and the shapes of its state. Whatever can't work is refused here, before a file is written ----
    mesh = make_mesh()
    check_batch_size(config.batch_size, config.accumulate, mesh)
    train_source, val_source = open_source(config.data, "train"), open_source(config.data, "val")
    data = describe(train_source)
    pixels = preprocessing(config.data, data)
    task = make_task(config.task, config.model, data)
    like = state_shardings(jax.eval_shape(lambda: init_state(task.build, config)), mesh, config.fsdp)

    # ---- where: the run's folder, locked, and what an earlier process left there ----
    run = storage.open_folder(config.workdir)
    with workdir.locked(run), Checkpoints(run / "checkpoints", config.keep) as checkpoints:
        checkpoints.recover()
        found = checkpoints.newest()
        workdir.check_resumable(config, run, found)
        workdir.write_config(run, config)
        with Log(run, found.step if found else 0, config.steps) as log:
            for line in checkpoints.sweep(found.damaged if found else {}):
                log.say(line)
            parameters = sum(x.size for x in like["params"].values())
            log.say(as_flags(config))
            log.say(f"{data['dataset']}: {len(train_source):,} images to train on, {len(val_source):,} to validate")
            devices = f"{mesh.size} × {jax.devices()[0].device_kind}"
            log.say(f"{parameters:,} parameters, {task.flops() / 1e9:.3g} GFLOPs an image, {devices}")
            log.say(f"resuming {run} from step {found.step}" if found else f"starting {run} afresh")

            # ---- how: the state, which starts in one of two ways, fresh or from a checkpoint; batches; the two steps ----
            if found:
                state, scores = checkpoints.restore(found.step, like), found.meta["scores"]
            else:
                state, scores = distribute(init_state(task.build, config), like), {}
            part = jax.process_index(), jax.process_count()
            batches = Batches(train_source, config.seed, config.batch_size, part, config.data.stream)
            prepare = make_prepare(config.data, config.augment)
            train_step, eval_step = make_train_step(task, prepare, config, like), make_eval_step(task, prepare)
            if not found and hosts.primary():
                pictures.train_batch(run / "train_batch.png", batches, prepare, config, task.class_names)

            def validate(state: dict) -> dict:
                split = once(val_source, config.batch_size, part)
                check = lambda: evaluate.check_stop(stop, mesh, "stopped")  # noqa: E731
                return evaluate.evaluate(task, eval_step, evaluated(state), split, mesh, check)[0]

            meta = {
                "config": to_json(config),
                "data": data,
                "preprocessing": pixels,
                "versions": workdir.versions(),
                "scores": scores,
            }
            loop = Loop(config, state, train_step, batches, validate, task, mesh, checkpoints, log, stop, meta)
            before, begin = matmul_speed(), time.perf_counter()
            try:
                loop.run()
            finally:
                if hosts.primary():
                    pictures.curves(run)
            seconds = time.perf_counter() - begin
            speeds = f"{before:.0f} GFLOP/s before, {matmul_speed():.0f} after"
            log.say(f"trained for {seconds:.0f} s; float32 matmul at {speeds}")

        # ---- how good: a split that nothing was chosen on, with what the last checkpoint holds ----
        model = evaluate.open_run(run, "last")
        figures, examples = evaluate.evaluate_split(model, splits(config.data)[-1], stop)
        if hosts.primary():
            results.write(run, model, figures, examples)
            print(f"the run is in {run}: eval.json, predictions.npz, curves.png, confusion.png, train_batch.png")


if __name__ == "__main__":
    stop = Stop.listen()
    with told_to_the_user():
        config = parse_config(sys.argv[1:], DEFAULT)
        from vit.training.hosts import joined

        with joined(config.distributed):
            main(config, stop)
