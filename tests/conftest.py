"""Shared by all tests: shapes are checked against their annotations, compilations are cached, matmuls are exact."""

import fcntl
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import forks
from tests.forks import QUICKLY
from vit.training.memory import TUNABLES

# Before jax starts: eight simulated devices in this process (a computation that names no devices still runs on one), and
# quicker compilations. The programs under test are compiled as a user's are.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {QUICKLY}"

import hypothesis
import jax
import jaxtyping
import numpy as np
import pytest

REPO = Path(__file__).parent.parent
CACHE = REPO / ".jax_cache"

# Every function of vit that states shapes is held to them, here and not in production.
jaxtyping.install_import_hook(["vit.models", "vit.tasks", "vit.data.augment", "vit.training.state"], "beartype.beartype")
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

# Two-core training of a tiny ViT that still goes through everything.
SMALL = [
    "--steps=12", "--batch-size=16", "--eval-every=4", "--save-every=3", "--log-every=2", "--schedule.warmup=2",
    "--model.width=16", "--model.depth=2", "--model.heads=2", "--model.mlp=32", "--model.drop-path=0.1", "--model.dropout=0.1",
]  # fmt: skip


def program_environment() -> dict[str, str]:
    """The environment of a program under test: the compilation cache, and no flags of the outer world."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    env["GLIBC_TUNABLES"] = TUNABLES  # as train.py sets it, or it would start itself anew and import all again
    return {**env, "JAX_COMPILATION_CACHE_DIR": str(CACHE), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def quickly_compiled() -> dict[str, str]:
    """The same, for models so large that compiling them takes most of a test's time."""
    return {**program_environment(), "XLA_FLAGS": QUICKLY}


def start(program: str, *args: object, forked: bool = True, env: dict[str, str] | None = None, cwd: Any = None) -> Any:
    """Start train.py or eval.py as a user does, with warnings as errors; forked, its imports are done (tests/forks.py)."""
    command, env, cwd = [str(REPO / program), *map(str, args)], env or program_environment(), str(cwd or os.getcwd())
    if forked:
        return forks.Fork(command, env, cwd)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-W", "error", *command], env=env, cwd=cwd, **pipes)


def run(program: str, *args: object, code: int = 0, timeout: float = 300, **options) -> tuple[str, str]:
    """Run a program to its end; what it printed to stdout and stderr."""
    process = start(program, *args, **options)
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == code, f"exit {process.returncode}, not {code}:\n{out}\n{err}"
    return out, err


SLOW = (
    "configs kills digits hosts signals disk segmentation notebooks transfer cifar "
    "programs segment sharding state masks vit finetune errors malformed eomt predict randaugment"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first, so that no process is left with one of them at the end."""
    names = [f"test_{name}" for name in SLOW.split()]
    items.sort(key=lambda item: names.index(item.path.stem) if item.path.stem in names else len(names))


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_are_let_go():
    """jax keeps all it has compiled: gigabytes by the end, through which the garbage collector goes again and again."""
    yield
    jax.clear_caches()
    gc.collect()


def colours(picture: np.ndarray) -> int:
    """How many different ones a PNG file has, read by matplotlib as (H, W, 3) in [0, 1]. `unique` of rows takes seconds."""
    return len(np.unique(np.rint(picture * 255).astype(int) @ [1, 2**8, 2**16]))


def pytest_sessionfinish() -> None:
    """Nobody forks any more."""
    forks.end()


def shared(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> Path:
    """A folder that the first of pytest's processes makes and all use: `make` fills it. Tests that change it work on a copy."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / f"{name}.done").exists():
            make(root / name)
            (root / f"{name}.done").touch()
    return root / name


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A finished run of the small setting, started as a user does."""
    return shared(tmp_path_factory, "trained", lambda folder: run("train.py", *SMALL, f"--workdir={folder}", forked=False))
