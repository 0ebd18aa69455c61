"""What glibc's malloc is told on Linux, for steps on a CPU: huge pages, and to give back what compiling leaves.

XLA takes a step's buffers (hundreds of MB) from the system anew at each step, and the system hands out zeroed pages one by one
as they are touched: of 4 kB, that is a tenth of a step's time; of 2 MB, nothing to speak of (docs/decisions/0018).
"""

import contextlib
import ctypes
import functools
import os
import sys
from pathlib import Path

SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")
TUNABLES = "glibc.malloc.hugetlb=1"


def with_huge_pages() -> None:
    """Start this process anew with huge pages for malloc, where the system gives them to who asks; once, before any work.

    malloc reads its settings when a process begins, never later. A GLIBC_TUNABLES of the user's own is left alone, and so is a
    process that isn't this program alone: a notebook's, a debugger's.
    """
    alone = sys.orig_argv[-len(sys.argv) :] == sys.argv and sys.gettrace() is None and "debugpy" not in sys.modules
    if not alone or "GLIBC_TUNABLES" in os.environ:
        return
    with contextlib.suppress(OSError):
        if "[madvise]" not in SYSTEM.read_text():
            return
        os.environ["GLIBC_TUNABLES"] = TUNABLES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


@functools.cache
def give_back_after_compiling() -> None:
    """From now on what a long compilation freed (200 MB for S/16's step) goes back to the system before the first step."""
    import jax

    with contextlib.suppress(OSError, AttributeError, TypeError):  # not glibc
        trim = ctypes.CDLL(None).malloc_trim

        def compiled(event: str, duration_secs: float, **kwargs: str | int) -> None:
            if event.endswith("backend_compile_duration") and duration_secs > 1:
                trim(0)

        jax.monitoring.register_event_duration_secs_listener(compiled)
