"""Several processes, one a host, that train one model: how they join, what they agree on, what they do when one is lost.

Only the primary process (number 0) writes, and it alone reads checkpoints; the others are told over the network. So the
run's folder may be on the primary's own disk. With one process everything here is a plain pass-through.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from vit.errors import BUG, STOPPED, Stopped, UserError

HEARTBEAT = 30  # seconds without a sign of a process until JAX calls it lost
LOST = UserError(
    "another process of this run has ended", "the network", "see its log; the same commands on all hosts then resume", STOPPED
)


def primary() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def joined(distributed: bool) -> Iterator[None]:
    """`jax.distributed.initialize()`, if asked for or told by JAX_COORDINATOR_ADDRESS, and not done yet.

    TPU pods, Slurm and Open MPI tell JAX who is who; elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID do. Raises `UserError` if the others can't be found. In a run of several processes, whatever goes wrong
    inside ends this process at once: it would wait for the others, and they for it.
    """
    if (distributed or "JAX_COORDINATOR_ADDRESS" in os.environ) and not jax.distributed.is_initialized():
        jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from us
        try:
            numbers = {name: os.environ.get(f"JAX_{name.upper()}") for name in ("num_processes", "process_id")}
            for name, x in numbers.items():
                if x and not x.isdecimal():
                    raise ValueError(f"JAX_{name.upper()} is {x!r}")
            told = cast(Any, {name: int(x) for name, x in numbers.items() if x})
            jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT, **told)
        except (ValueError, RuntimeError, TypeError) as error:
            what = f"the other processes can't be found: {error}"
            fix = "set JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID"
            raise UserError(what, "--distributed", fix) from error
    if jax.process_count() == 1:
        yield
        return
    _listen_for_abort()
    try:
        yield
    except Stopped:  # agreed upon: all leave together
        raise
    except UserError as error:
        _leave(str(error), error.code)
    except (ValueError, jax.errors.JaxRuntimeError) as error:  # Gloo's, on a CPU, are ValueErrors
        network = any(word in str(error) for word in ("Gloo", "UNAVAILABLE", "coordination", "DEADLINE_EXCEEDED"))
        _leave(str(LOST) if network else traceback.format_exc(), STOPPED if network else BUG)
    except BaseException:  # noqa: BLE001 - printed in full
        _leave(traceback.format_exc(), BUG)


def _leave(message: str, code: int) -> None:
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


def _listen_for_abort() -> None:
    """When process 0 is lost, JAX's own thread aborts every other process in C++: say what that means."""

    def aborted(_: int) -> None:
        _leave(f"{LOST}\n(or this one broke: then JAX has said so above)", STOPPED)

    global _handler  # C keeps its address
    _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _handler)


def from_primary(make: Callable[[], Any]) -> Any:
    """What `make()` gives on the primary process, told to all: JSON values."""
    if jax.process_count() == 1:
        return make()
    told = json.dumps(make()).encode() if primary() else b""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(told))))
    text = multihost_utils.broadcast_one_to_all(np.frombuffer(told.ljust(length), np.uint8))
    return json.loads(np.asarray(text, np.uint8).tobytes())


def array_from_primary(x: np.ndarray) -> np.ndarray:
    """The primary's array on all; the others give one of the same shape and type. Bit by bit: a sum would lose -0."""
    if jax.process_count() == 1:
        return x
    bits = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(bits), np.uint8).view(x.dtype).reshape(x.shape)
