"""Train a Vision Transformer.

    uv run train.py                                  # handwritten digits, a minute and a half on two cores
    uv run train.py --config configs/digits.py --workdir runs/x --seed 1 --optim.lr 5e-4
    uv run train.py --help                           # every setting

The same command again resumes where it was stopped. Exit codes: 0 done, 2 a mistake in what was asked (three lines say
what, where and how to mend it), 75 stopped by Ctrl-C or SIGTERM and saved.
"""

import itertools
import sys
import time
from pathlib import Path

from vit.config import Config, to_json
from vit.errors import Stopped, told_to_the_user
from vit.flags import as_flags, parse_config
from vit.training.memory import give_back_after_compiling, with_huge_pages
from vit.training.stop import Stop

DEFAULT = Path(__file__).parent / "configs" / "digits.py"


def main(config: Config, stop: Stop) -> None:
    """Configuration → data → task → folder → state → loop → evaluation."""
    # Here and not above, so that a mistyped flag is answered at once and a signal during these seconds is heard.
    import jax

    from vit.data.augment import make_prepare, preprocessing
    from vit.data.batches import Batches, once
    from vit.data.sources import describe, open_source, said, splits
    from vit.report import results
    from vit.tasks import make_task
    from vit.training import evaluate, hosts, storage, workdir
    from vit.training.checkpoint import Checkpoints
    from vit.training.estimate import estimate
    from vit.training.hardware import peak_flops
    from vit.training.log import Log, matmul_speed
    from vit.training.loop import Loop
    from vit.training.sharding import check_batch_size, distribute, make_mesh, state_shardings
    from vit.training.state import evaluated, init_state, make_eval_step, make_train_step, state_shapes
    from vit.training.trained import trained
    from vit.weights import start

    give_back_after_compiling()

    # ---- what: data, task, and the shapes of its state. Whatever can't work is refused here, before a file is written ----
    mesh, run = make_mesh(tensor=config.tensor), storage.open_folder(config.workdir)
    config, weights, notes = start.settle(config, run)
    check_batch_size(config.batch_size, config.accumulate, mesh)
    train_source, val_source = open_source(config.data, "train"), open_source(config.data, "val")
    data = describe(train_source)
    config, pretrained, more = start.prepare(config, weights, data, len(train_source))
    pixels = preprocessing(config.data, data)
    task = make_task(config.task, config.model, data)
    like = state_shardings(state_shapes(task, config), mesh, config.fsdp)

    if config.dry_run:
        lines = estimate(config, jax.devices())  # by all: a program of several processes is compiled by each
        if hosts.primary():
            print("\n".join(lines))
        return

    # ---- where: the run's folder, locked, and what an earlier process left there ----
    with workdir.locked(run), Checkpoints(run / "checkpoints", config.keep) as checkpoints:
        checkpoints.recover()
        found = checkpoints.newest()
        workdir.check_resumable(config, run, found)
        workdir.write_config(run, config)
        workdir.write_environment(run, **workdir.machine())
        with Log(run, found.step if found else 0, config.steps) as log:
            for line in checkpoints.sweep(found.damaged if found else {}):
                log.say(line)
            parameters = sum(x.size for x in like["params"].values())
            training = sum(like["params"][path].size for path in trained(config, like["params"]))
            log.say(as_flags(config))
            log.say(f"{data['dataset']}: {len(train_source):,} images to train on, {len(val_source):,} to validate")
            for line in [*said(train_source), *([] if found else [*notes, *more])]:
                log.say(line)
            devices = f"{mesh.size} × {jax.devices()[0].device_kind}"
            some = f" ({training:,} of them trained)" if training < parameters else ""
            log.say(f"{parameters:,} parameters{some}, {task.flops() / 1e9:.3g} GFLOPs an image, {devices}")
            log.say(f"resuming {run} from step {found.step}" if found else f"starting {run} afresh")

            # ---- how: the state, which starts fresh, from pretrained weights or from a checkpoint; batches; the two steps ----
            if found:
                state, scores = checkpoints.restore(found.step, like), found.meta["scores"]
            else:
                state, scores = distribute(init_state(task.build, config, pretrained), like), {}
            part = jax.process_index(), jax.process_count()
            batches = Batches(train_source, config.seed, config.batch_size, part, config.data.stream)
            prepare = make_prepare(config.data, config.augment)
            train_step, eval_step = make_train_step(task, prepare, config, like), make_eval_step(task, prepare)
            own = results.OF_TASK[type(task)]
            if not found and hosts.primary():
                own.beginning(run, task, config, batches, prepare, {"train": train_source, "val": val_source})

            look, seen = own.watch(task, prepare, val_source, mesh), {}

            def validate(state: dict, batches: int | None = None) -> dict:
                split = itertools.islice(once(val_source, config.batch_size, part, config.data.stream), batches)
                check = (lambda: None) if batches else (lambda: evaluate.check_stop(stop, mesh, "stopped"))
                figures, examples = evaluate.evaluate(task, eval_step, evaluated(state), split, mesh, check)
                seen.update(step=int(state["step"]), figures=figures, examples=examples, watched=look(evaluated(state)))
                return figures

            versions = workdir.versions()
            meta = {"config": to_json(config), "data": data, "preprocessing": pixels, "versions": versions, "scores": scores}
            before = matmul_speed()
            limit = peak_flops(mesh.devices.flatten(), before)
            loop = Loop(
                config, state, train_step, batches, validate, task, mesh, checkpoints, log, stop, meta, limit, task.flops
            )
            begin = time.perf_counter()
            try:
                loop.run()
            except Stopped:
                if not seen and not loop.compiling:  # stopped before the first validation: a glimpse of it, for the pictures
                    validate(loop.state, batches=1)
                raise
            finally:
                if hosts.primary():
                    results.training(run, task, val_source, seen, evaluated=(run / "eval.json").exists())
            seconds, after = time.perf_counter() - begin, matmul_speed()
            log.say(f"trained for {seconds:.0f} s; float32 matmul at {before:.0f} GFLOP/s before, {after:.0f} after")
            workdir.write_environment(run, trained_s=round(seconds), matmul_gflops=f"{before:.0f} before, {after:.0f} after")

        # ---- how good: a split that nothing was chosen on, with what the last checkpoint holds ----
        model = evaluate.open_run(run, "last")
        figures, examples, source = evaluate.evaluate_split(model, splits(config.data)[-1], stop)
        if hosts.primary():
            results.write(run, model, figures, examples, source)
            print(f"the run is in {run}: look at {run / 'report.html'}")


if __name__ == "__main__":
    with_huge_pages()
    stop = Stop.listen()
    with told_to_the_user():
        config = parse_config(sys.argv[1:], DEFAULT)
        from vit.training.hosts import joined
        from vit.training.profile import with_every_kernel

        with_every_kernel(config.profile)
        with joined(config.distributed):
            main(config, stop)
