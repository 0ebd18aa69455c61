"""Programs under test as forks of one process that has imported what they import: alone each spends five seconds on that.

`python tests/forks.py` is that process. It reads a JSON object a line, forks, and tells the child's number; how the child ended
is then in a file. JAX starts nothing and reads no XLA_FLAGS before its first computation, so a fork is as good as a start, but
for what comes before the imports: signals that early, and mistyped flags. `start(…, forked=False)` is for these.
"""

import functools
import importlib
import itertools
import json
import os
import runpy
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

# XLA compiles in half the time, and again in three fifths of that by emitters that jaxlib 0.12 has no more: the flag ends it.
QUICKLY = "--xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):
    QUICKLY += " --xla_cpu_use_fusion_emitters=false"

IMPORTS = [
    "jax", "sklearn.datasets", "sklearn.model_selection", "tensorboardX.record_writer", "vit.report.results",
    "vit.training.loop", "vit.training.probe", "vit.weights.start",
]  # fmt: skip


class Fork:
    """A program that runs; as much of `subprocess.Popen` as tests ask for."""

    def __init__(self, command: list[str], env: dict[str, str], cwd: str):
        server, folder, numbers = forking()
        self.args, self.returncode, self.files = command, None, folder / str(next(numbers))
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps({"argv": command, "env": env, "cwd": cwd, "files": str(self.files)}) + "\n")
        server.stdin.flush()
        self.pid = int(server.stdout.readline())

    def poll(self) -> int | None:
        code = self.files.with_suffix(".code")
        if self.returncode is None and code.exists():
            self.returncode = int(code.read_text())
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.005)
        return code

    def communicate(self, timeout: float = float("inf")) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (self.files.with_suffix(suffix).read_text() for suffix in (".out", ".err"))
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@functools.cache
def forking() -> tuple[subprocess.Popen[str], Path, Iterator[int]]:
    """The process that forks, one for each of pytest's processes; the folder of what its children print; numbers for them."""
    from tests.conftest import REPO, program_environment

    command = [sys.executable, "-W", "error", str(REPO / "tests" / "forks.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen(command, cwd=REPO, env=program_environment(), **pipes)
    return server, Path(tempfile.mkdtemp()), itertools.count()


def end() -> None:
    """End that process, if it was needed."""
    if forking.cache_info().currsize:
        server, folder, _ = forking()
        server.communicate()  # its input ends, and so does it
        shutil.rmtree(folder)


def become(wanted: dict) -> None:
    """In a child: the environment, folder, outputs and arguments of the program that it will be."""
    for number, path in enumerate((os.devnull, f"{wanted['files']}.out", f"{wanted['files']}.err")):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    import jax

    env, name = wanted["env"], "JAX_ENABLE_COMPILATION_CACHE"  # which JAX read when it was imported
    if env.get(name) != os.environ.get(name):
        jax.config.update(name.lower(), env[name] == "true")
    os.environ.clear()
    os.environ.update(env)
    os.chdir(wanted["cwd"])
    sys.argv = wanted["argv"]
    sys.path[0] = os.path.dirname(sys.argv[0])


def serve() -> dict:
    """Fork until the input ends; only a child returns, with what it should be."""
    running: dict[int, str] = {}
    while True:
        if select.select([0], [], [], 0.005 if running else None)[0]:
            line = sys.stdin.readline()
            if not line:
                break
            wanted = json.loads(line)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # NumPy's linear algebra has threads, and knows what to do
                pid = os.fork()
            if not pid:
                return wanted
            running[pid] = wanted["files"]
            print(pid, flush=True)
        for pid in [*running]:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                files = running.pop(pid)
                Path(f"{files}.new").write_text(str(os.waitstatus_to_exitcode(status)))
                Path(f"{files}.new").rename(f"{files}.code")
    for pid in running:  # nobody is interested any more
        os.kill(pid, signal.SIGKILL)
    sys.exit()


if __name__ == "__main__":
    sys.path[0] = os.getcwd()
    for name in IMPORTS:
        importlib.import_module(name)
    become(serve())
    runpy.run_path(sys.argv[0], run_name="__main__")
