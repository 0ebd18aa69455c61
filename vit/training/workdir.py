"""The folder of a run: made, locked against a second trainer, and checked to hold the run that is asked for."""

import collections
import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax

import vit
from vit.config import Config, differences, fields, from_json, to_json
from vit.errors import UserError
from vit.limits import flag
from vit.training.checkpoint import Found
from vit.training.hosts import primary
from vit.training.log import read_metrics
from vit.training.storage import is_remote, write_atomically


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Make the folder and hold it against other trainers; a killed process lets go by itself.

    Raises `UserError` if it can't be written to or another process trains there.
    """
    if not primary():
        yield
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        # An object store has no locks that a killed process lets go.
        opened = contextlib.nullcontext() if is_remote(path) else (path / ".lock").open("a")
    except OSError as error:
        raise UserError(f"the run's folder can't be written: {error.strerror}", str(path), "give another --workdir") from error
    with opened as lock:
        with contextlib.suppress(ImportError):  # there is no fcntl on Windows
            import fcntl

            try:
                if lock is not None:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                what = "another process is training in this folder"
                raise UserError(what, str(path), "wait for it or stop it, or give another --workdir") from error
        yield


def check_resumable(config: Config, workdir: Path, found: Found | None) -> None:
    """Raise `UserError` if going on from the checkpoint found would not be the run that was begun."""
    if found is None:
        if any(row["step"] > 0 for row in read_metrics(workdir / "metrics.jsonl")):
            what = "a run was begun here, but its checkpoints are gone"
            raise UserError(what, str(workdir), "bring back the checkpoints folder, or give another --workdir")
        return
    where = f"{workdir}, step {found.step}"
    if changed := differences(from_json(found.meta["config"], where), config):
        name, (old, new) = sorted(changed.items())[0]
        others = f" (and {', '.join(flag(n) for n in sorted(changed)[1:])})" if len(changed) > 1 else ""
        old, new = (" ".join(map(str, x)) if isinstance(x, tuple) else x for x in (old, new))
        what = f"{flag(name)} was {old} when this run began and is {new} now{others}"
        keep = f"keep {flag(name)} {old}" if name in fields(config) else "take the config file that it began with"
        raise UserError(what, where, f"{keep}, or give another --workdir for a new run")
    if config.steps < found.step:
        what = f"--steps {config.steps} is behind this run, which is at step {found.step}"
        raise UserError(what, where, f"give --steps {found.step} or more, or another --workdir")


def write_config(workdir: Path, config: Config) -> None:
    """`config.json`, for people; a resume reads the configuration from its checkpoint."""
    if primary():
        write_atomically(workdir / "config.json", json.dumps(to_json(config), indent=1) + "\n")


def write_environment(workdir: Path, **facts: str | float) -> None:
    """`environment.json`, for people: the command, the machine, the versions, and facts that are added to it."""
    if primary():
        path = workdir / "environment.json"
        known = json.loads(path.read_bytes()) if path.exists() else {}
        write_atomically(path, json.dumps({**known, **facts}, indent=1) + "\n")


def machine() -> dict[str, str | float]:
    """The command, the time, the machine and its devices."""
    kinds = collections.Counter(device.device_kind for device in jax.devices())
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "begun": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "host": f"{platform.node()}, {platform.platform()}",
        "cores": os.cpu_count() or 0,
        "devices": ", ".join(f"{count} × {kind}" for kind, count in kinds.items()),
        "processes": jax.process_count(),
        **versions(),
    }


def versions() -> dict[str, str]:
    """Versions of what computes: they travel in every checkpoint."""
    packages = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint", "numpy")}
    return {"vit": vit.__version__, "python": platform.python_version(), **packages}
