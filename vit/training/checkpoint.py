"""Checkpoints that are proven whole: the only file that imports orbax.

A save goes to `checkpoints/tmp-STEP`: Orbax writes `state/`, we write `meta.json`, hash every file into `manifest.json`,
sync all to disk, and rename the folder to `checkpoints/STEP`. The manifest is the commit mark: a `tmp-` folder is a
save that was killed and is cleaned away; a STEP folder whose files don't match its manifest is damaged, is kept aside as
`STEP.damaged`, and the newest good one serves. (Orbax itself restores flipped bits without an error, and its
finalization callback runs before its last files are written.)

In an object store nothing is renamed: `tmp-STEP` is a note that STEP is on its way, files are sent there from a local folder,
the manifest last, and then the note goes. A STEP without manifest beside its note is an unfinished save.

In a run of several processes the primary alone writes and reads, and the others are told.
"""

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from vit.errors import UserError
from vit.training import lora, storage
from vit.training.hosts import array_from_primary, from_primary, primary
from vit.training.sharding import collect, distribute
from vit.training.storage import MANIFEST

# What stops a save is raised here and told in three lines. Orbax's threads log it too, asyncio for each array that failed
# beside the first, and TensorStore prints a traceback for each that then finds the event loop closed.
logging.getLogger("absl").addFilter(lambda record: record.levelno < logging.ERROR or "/orbax/" not in record.pathname)
logging.getLogger("asyncio").addFilter(lambda record: not re.search("tensorstore|/orbax/", record.getMessage()))


def _unless_of_a_failed_save(unraisable: Any, otherwise: Any = sys.unraisablehook) -> None:
    if unraisable.object or str(unraisable.exc_value) != "Event loop is closed":
        otherwise(unraisable)


sys.unraisablehook = _unless_of_a_failed_save


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

    def __init__(self, folder: Any, keep: int = 3):
        self.remote = storage.is_remote(folder)
        self.folder, self.keep = folder if self.remote else folder.absolute(), keep
        self._staging = Path(tempfile.mkdtemp(prefix="vit-")) if self.remote else self.folder
        alone = {jax.process_index()}
        options = ocp.options.MultiprocessingOptions(primary_host=jax.process_index(), active_processes=alone)
        # Not Orbax's own background save: when it fails, its threads keep the program from ending for ten minutes.
        self._orbax = ocp.Checkpointer(
            ocp.StandardCheckpointHandler(multiprocessing_options=options), multiprocessing_options=options
        )
        self._thread = ThreadPoolExecutor(1, "save")
        self._saving: Future[None] | None = None
        self._first: tuple[int, int] | None = None  # device and inode of the folder that was written to first

    def steps(self) -> list[int]:
        """Steps that have a committed folder, ascending (not yet proven whole)."""
        names = set(self._names())
        return sorted(int(n) for n in names if n.isdecimal() and str(int(n)) == n and not self._on_its_way(n, names))

    def _names(self, prefix: str = "") -> list[str]:
        names = [p.name for p in self.folder.iterdir()] if self.folder.exists() else []
        return sorted(name for name in names if name.startswith(prefix))

    def _on_its_way(self, name: str, names: set[str]) -> bool:
        return self.remote and f"tmp-{name}" in names and not (self.folder / name / MANIFEST).exists()

    # ---- saving ----

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Save in the background, unless just this is there already. `meta["scores"]` tells which step is the best.

        Raises `UserError`, here or in `check` or `wait`, if it or an earlier save failed.
        """
        self.wait()
        if not _all_finite(state):
            raise FloatingPointError(f"the state of step {step} is not finite and was not saved")
        # Copied at once: the next step reuses this memory.
        state = collect(state)
        if not primary():
            return
        if step in self.steps():
            with contextlib.suppress(Damaged):
                if self.verify(step)["scores"] == meta["scores"]:
                    return
        temporary = self._staging / f"tmp-{step}"
        with _failing_as_user_error(step, self.folder):
            temporary.mkdir(parents=self._first is None)  # a folder that vanished meanwhile is not made anew
            self._check_folder(temporary)
            # Orbax's threads fill the console when they meet a full disk. Beside the numbers it writes 1 to 2 kB an array.
            arrays, free = jax.tree.leaves(state), shutil.disk_usage(temporary).free
            needed = sum(x.nbytes for x in arrays) + 2**11 * len(arrays) + 2**16
            if free < needed:
                raise OSError(errno.ENOSPC, f"No space left on device: {needed:,} bytes needed, {free:,} free")
        self._saving = self._thread.submit(self._commit, step, state, meta)

    def check(self) -> None:
        """Raise what a save failed with, without waiting for one that is under way."""
        if self._saving is not None and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Return when no save is under way; raise what it failed with."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.result()

    def _commit(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        temporary, target, old = self._staging / f"tmp-{step}", self.folder / str(step), self.folder / f"old-{step}"
        with _failing_as_user_error(step, self.folder):
            self._orbax.save(temporary / "state", args=ocp.args.StandardSave(_by_path(state)))
            self._check_folder(temporary)
            (temporary / "meta.json").write_text(json.dumps(meta, indent=1))
            files = {name: storage.digest(temporary / name) for name in storage.files(temporary)}
            (temporary / MANIFEST).write_text(_manifest_text(step, files))
            storage.sync(temporary)
            if step in self.steps():  # `recover` brings it back if we are killed before the next one is there
                storage.move(target, old)
            with self._noted(step):
                storage.move(temporary, target)
            if not self.remote:
                storage.sync_one(self.folder)
            if old.exists():
                storage.remove(old)
            steps = self.steps()
            for leaving in set(steps) - {*steps[-self.keep :], best_step(meta["scores"], steps)}:
                self._discard(leaving)

    def _check_folder(self, temporary: Path) -> None:
        """Raise `OSError` if the folder has vanished since the first save, and remove what Orbax then made in its place."""
        now = self._staging.stat()
        self._first = self._first or (now.st_dev, now.st_ino)
        if self._first != (now.st_dev, now.st_ino):
            shutil.rmtree(temporary)
            with contextlib.suppress(OSError):  # not empty: somebody else's
                self._staging.rmdir()
                self._staging.parent.rmdir()
            raise FileNotFoundError(errno.ENOENT, "the folder was moved or removed")

    @contextlib.contextmanager
    def _noted(self, step: int) -> Iterator[None]:
        """In an object store, a note that STEP is coming or going: until it is removed, STEP may lack files."""
        note = self.folder / f"tmp-{step}" / "note"
        if self.remote:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text("this checkpoint is being written or removed")
        yield
        if self.remote:
            note.parent.rmtree()

    def _discard(self, step: int) -> None:
        """Remove a checkpoint so that a kill half-way leaves nothing that looks damaged."""
        with self._noted(step):
            if not self.remote:
                (self.folder / str(step)).rename(self.folder / f"tmp-{step}")
            storage.remove(self.folder / (str(step) if self.remote else f"tmp-{step}"))

    def recover(self) -> None:
        """Bring back a checkpoint that was about to be replaced when the process was killed. For the trainer only."""
        for name in self._names("old-") if primary() else ():
            old, target = self.folder / name, self.folder / name[4:]
            if self.remote and target.exists() and not (target / MANIFEST).exists():
                target.rmtree()
            if not target.exists() and (old / MANIFEST).exists():
                storage.move(old, target)

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
                same = storage.digest(folder / name) == digest
            except OSError as error:
                raise Damaged(f"{name} can't be read ({type(error).__name__})") from error
            if not same:
                raise Damaged(f"{name} was changed")
        return json.loads((folder / "meta.json").read_text())

    def newest(self) -> Found | None:
        """The newest good checkpoint; None for a run that has none yet. Changes nothing.

        Raises `UserError` if there are only damaged ones.
        """
        found = from_primary(self._newest)
        return Found(found[0], found[1], {int(step): what for step, what in found[2].items()}) if found else None

    def _newest(self) -> Found | None:
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                return Found(step, self.verify(step), damaged)
            except Damaged as damage:
                if (self.folder / str(step)).exists():  # or a trainer thinned it out just now
                    damaged[step] = str(damage)
        bad = [f"{step} ({damage})" for step, damage in damaged.items()] + [n for n in self._names() if ".damaged" in n]
        if bad:
            what = f"no checkpoint of this run is whole: {', '.join(bad)}"
            raise UserError(what, str(self.folder), "bring back a backup of one, or start anew in another --workdir")
        return None

    def sweep(self, damaged: dict[int, str]) -> list[str]:
        """Remove unfinished saves and put damaged checkpoints aside; a line on each of those."""
        if not primary():
            return []
        for unfinished in [*self._names("tmp-"), *self._names("old-")]:
            half = self.folder / unfinished[4:]
            if self.remote and half.exists() and not (half / MANIFEST).exists():
                half.rmtree()
            storage.remove(self.folder / unfinished)
        lines = []
        for step, damage in damaged.items():
            free = (f"{step}.damaged{suffix}" for suffix in ["", *(f"-{i}" for i in range(2, 1000))])
            name = next(name for name in free if not (self.folder / name).exists())
            storage.move(self.folder / str(step), self.folder / name)
            lines.append(f"checkpoint {step} is damaged ({damage}): kept aside as {self.folder.name}/{name}")
        return lines

    def restore(self, step: int, like: Any) -> Any:
        """The state saved at `step`; `like`, arrays or shapes with a sharding, says where it lives."""
        saved = self._arrays(step)
        return distribute(jax.tree_util.tree_map_with_path(lambda path, _: saved[_path(path)], like), like)

    def params(self, step: int) -> dict[str, np.ndarray]:
        """The parameters that are evaluated (the moving average where there is one, LoRA's factors merged), by path."""
        saved = self._arrays(step)
        kept, averaged = (
            {path.removeprefix(kind): x for path, x in saved.items() if path.startswith(kind)} for kind in ("params/", "ema/")
        )
        return {path: np.asarray(x) for path, x in lora.plain(cast(Any, {**kept, **averaged})).items()}

    def _arrays(self, step: int) -> dict[str, np.ndarray]:
        """Every saved array by path: the primary reads, the others are told."""
        read = self._read(step) if primary() else {}
        shapes = from_primary(lambda: {path: (x.shape, x.dtype.name) for path, x in read.items()})
        return {path: array_from_primary(read.get(path, np.zeros(*shape))) for path, shape in shapes.items()}

    def _read(self, step: int) -> dict[str, np.ndarray]:
        folder = self.folder / str(step)
        with tempfile.TemporaryDirectory(prefix="vit-") as here:
            if self.remote:
                storage.copy(folder, Path(here))
                folder = Path(here)
            saved = cast(Any, self._orbax.metadata(folder / "state").item_metadata).tree
            wanted = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), saved)
            restored: Any = self._orbax.restore(folder / "state", args=ocp.args.StandardRestore(wanted))
            return cast(dict[str, np.ndarray], flatten_dict(restored, sep="/"))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()  # after the last save
        self._orbax.close()
        if self.remote:
            shutil.rmtree(self._staging)


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


@contextlib.contextmanager
def _failing_as_user_error(step: int, folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: what tensorstore makes of a full disk
        code = re.search(r"os_error_code='(\d+)'", str(error))
        why = getattr(error, "strerror", None) or (os.strerror(int(code[1])) if code else f"{error!s:.160}")
        what = f"the checkpoint of step {step} could not be written: {why}"
        raise UserError(what, str(folder), "make room or mend the folder; the same command then resumes") from error


@jax.jit
def _all_finite(state: Any) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in leaves]))
