"""Checkpoints that are proven whole: the only file that imports orbax.

A save goes to `checkpoints/tmp-STEP`: Orbax writes `state/`, we write `meta.json`, hash every file into `manifest.json`,
sync all to disk, and rename the folder to `checkpoints/STEP`. The manifest is the commit mark: a `tmp-` folder is a
save that was killed and is cleaned away; a STEP folder whose files don't match its manifest is damaged, is kept aside as
`STEP.damaged`, and the newest good one serves. (Orbax itself restores flipped bits without an error, and its
finalization callback runs before its last files are written.)
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from vit.errors import UserError

MANIFEST = "manifest.json"


class Damaged(Exception):
    """A checkpoint's files are not what was saved; the message names the first that differs."""


class Found(NamedTuple):
    """The newest good checkpoint, and what is wrong with each newer one."""

    step: int
    meta: dict[str, Any]
    damaged: dict[int, str]


class Checkpoints:
    """The checkpoints of a run.

    Args:
      folder: `runs/NAME/checkpoints`.
      keep: how many of the newest stay, beside the best by validation.
    """

    def __init__(self, folder: Path, keep: int = 3):
        self.folder, self.keep = folder.absolute(), keep
        self._orbax = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        self._thread = ThreadPoolExecutor(1, "save")
        self._saving: Future[None] | None = None

    def steps(self) -> list[int]:
        """Steps that have a committed folder, ascending (not yet proven whole)."""
        return sorted(int(p.name) for p in self.folder.glob("*") if p.name.isdecimal() and str(int(p.name)) == p.name)

    # ---- saving ----

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Save in the background, unless just this is there already. `meta["scores"]` tells which step is the best.

        Raises `UserError`, here or in `check` or `wait`, if it or an earlier save failed.
        """
        self.wait()
        if step in self.steps():
            with contextlib.suppress(Damaged):
                if self.verify(step)["scores"] == meta["scores"]:
                    return
        if not _all_finite(state):
            raise FloatingPointError(f"the state of step {step} is not finite and was not saved")
        temporary = self.folder / f"tmp-{step}"
        with _failing_as_user_error(step, self.folder):
            temporary.mkdir(parents=True)
            # On the CPU Orbax would write from memory that the next step reuses.
            state = jax.tree.map(jnp.copy, state) if jax.default_backend() == "cpu" else state
            self._orbax.save(temporary / "state", args=ocp.args.StandardSave(_by_path(state)))
        self._saving = self._thread.submit(self._commit, step, meta)

    def check(self) -> None:
        """Raise what a save failed with, without waiting for one that is under way."""
        if self._saving is not None and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Return when no save is under way; raise what it failed with."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.result()

    def _commit(self, step: int, meta: dict[str, Any]) -> None:
        temporary = self.folder / f"tmp-{step}"
        with _failing_as_user_error(step, self.folder):
            self._orbax.wait_until_finished()
            (temporary / "meta.json").write_text(json.dumps(meta, indent=1))
            files = {str(p.relative_to(temporary)): _digest(p) for p in sorted(temporary.rglob("*")) if p.is_file()}
            (temporary / MANIFEST).write_text(_manifest_text(step, files))
            for path in [*temporary.rglob("*"), temporary]:
                _sync(path)
            if step in self.steps():  # `recover` brings it back if we are killed before the next rename
                (self.folder / str(step)).rename(self.folder / f"old-{step}")
            temporary.rename(self.folder / str(step))
            _sync(self.folder)
            shutil.rmtree(self.folder / f"old-{step}", ignore_errors=True)
            steps = self.steps()
            for old in set(steps) - {*steps[-self.keep :], best_step(meta["scores"], steps)}:
                leaving = self.folder / f"tmp-{old}"  # a kill half-way then leaves nothing that looks damaged
                (self.folder / str(old)).rename(leaving)
                shutil.rmtree(leaving)

    def recover(self) -> None:
        """Bring back a checkpoint that was about to be replaced when the process was killed. For the trainer only."""
        for old in self.folder.glob("old-*"):
            if not (self.folder / old.name[4:]).exists():
                old.rename(self.folder / old.name[4:])

    # ---- restoring ----

    def verify(self, step: int) -> dict[str, Any]:
        """The meta data of a checkpoint whose every file is as it was saved. Raises `Damaged`."""
        folder = self.folder / str(step)
        try:
            text = (folder / MANIFEST).read_text()
            files = json.loads(text)["files"]
            whole = _manifest_text(step, files) == text
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Damaged(f"{MANIFEST} can't be read ({type(error).__name__})") from error
        if not whole:
            raise Damaged(f"{MANIFEST} was changed")
        for name, digest in files.items():
            try:
                same = _digest(folder / name) == digest
            except OSError as error:
                raise Damaged(f"{name} can't be read ({type(error).__name__})") from error
            if not same:
                raise Damaged(f"{name} was changed")
        return json.loads((folder / "meta.json").read_text())

    def newest(self) -> Found | None:
        """The newest good checkpoint; None for a run that has none yet. Changes nothing.

        Raises `UserError` if there are only damaged ones.
        """
        damaged = {}
        for step in reversed(self.steps()):
            try:
                return Found(step, self.verify(step), damaged)
            except Damaged as damage:
                if (self.folder / str(step)).exists():  # or a trainer thinned it out just now
                    damaged[step] = str(damage)
        bad = [f"{step} ({damage})" for step, damage in damaged.items()] + [p.name for p in self.folder.glob("*.damaged*")]
        if bad:
            what = f"no checkpoint of this run is whole: {', '.join(bad)}"
            raise UserError(what, str(self.folder), "bring back a backup of one, or start anew in another --workdir")
        return None

    def sweep(self, damaged: dict[int, str]) -> list[str]:
        """Remove unfinished saves and put damaged checkpoints aside; a line on each of those."""
        for unfinished in [*self.folder.glob("tmp-*"), *self.folder.glob("old-*")]:
            shutil.rmtree(unfinished)
        lines = []
        for step, damage in damaged.items():
            free = (f"{step}.damaged{suffix}" for suffix in ["", *(f"-{i}" for i in range(2, 1000))])
            name = next(name for name in free if not (self.folder / name).exists())
            (self.folder / str(step)).rename(self.folder / name)
            lines.append(f"checkpoint {step} is damaged ({damage}): kept aside as {self.folder.name}/{name}")
        return lines

    def restore(self, step: int, like: Any, sharding: jax.sharding.Sharding) -> Any:
        """The state saved at `step`, placed by `sharding`; `like` gives its structure and shapes."""
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
        restored = self._orbax.restore(self.folder / str(step) / "state", args=ocp.args.StandardRestore(_by_path(wanted)))
        flat = flatten_dict(restored, sep="/")
        return jax.tree_util.tree_map_with_path(lambda path, _: flat[_path(path)], like)

    def params(self, step: int) -> dict[str, Any]:
        """The parameters that are evaluated (the moving average where there is one), by path."""
        path = self.folder / str(step) / "state"
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # not the devices that it was saved on
        saved = cast(Any, self._orbax.metadata(path).item_metadata).tree
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), saved)
        restored = self._orbax.restore(path, args=ocp.args.StandardRestore(wanted))
        return flatten_dict(restored.get("ema", restored["params"]), sep="/")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()  # after the last save
        self._orbax.close()


def best_step(scores: dict[str, list[float]], steps: list[int]) -> int | None:
    """Of the steps, the one with the best validation score; the earliest of equals."""
    known = [step for step in steps if str(step) in scores]
    return max(known, key=lambda step: (scores[str(step)], -step), default=None)


def _by_path(state: Any) -> dict[str, Any]:
    """Any pytree as nested dicts of string keys, so that a checkpoint needs no code to be read."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return unflatten_dict({tuple(_path(path).split("/")): leaf for path, leaf in leaves})


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _manifest_text(step: int, files: dict[str, str]) -> str:
    """The one way to write a manifest, so that a changed byte of it shows too."""
    return json.dumps({"step": step, "sha256 of": "every file below this folder", "files": files}, indent=1)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _failing_as_user_error(step: int, folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: what tensorstore makes of a full disk
        what = f"the checkpoint of step {step} could not be written: {error}"
        raise UserError(what, str(folder), "make room or mend the folder; the same command then resumes") from error


@jax.jit
def _all_finite(state: Any) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in leaves]))
