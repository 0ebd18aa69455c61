"""Shared by all tests: shapes are checked against their annotations, compilations are cached, matmuls are exact."""

import fcntl
import gc
import os
import subprocess
import sys
from pathlib import Path

# Before jax starts: eight simulated devices in this process (a computation that names no devices still runs on one), and
# compilations in half the time. The programs under test are compiled as a user's are.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

import hypothesis
import jax
import jaxtyping
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
    return {**env, "JAX_COMPILATION_CACHE_DIR": str(CACHE), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def quickly_compiled() -> dict[str, str]:
    """The same, for models so large that compiling them takes most of a test's time."""
    return {**program_environment(), "XLA_FLAGS": "--xla_backend_optimization_level=0"}


def start(program: str, *args: object, **options) -> subprocess.Popen:
    """Start train.py or eval.py as a user does, with warnings as errors."""
    command = [sys.executable, "-W", "error", str(REPO / program), *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **{"env": program_environment(), **pipes, **options})


def run(program: str, *args: object, code: int = 0, timeout: float = 300, **options) -> tuple[str, str]:
    """Run a program to its end; what it printed to stdout and stderr."""
    process = start(program, *args, **options)
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == code, f"exit {process.returncode}, not {code}:\n{out}\n{err}"
    return out, err


SLOW = "kills signals notebooks programs sharding state vit finetune hosts randaugment malformed errors"


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


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A finished run of the small setting, made once for all of pytest's processes. Tests that change it work on a copy."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with (folder / "trained.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "trained" / "eval.json").exists():
            run("train.py", *SMALL, f"--workdir={folder / 'trained'}")
    return folder / "trained"
