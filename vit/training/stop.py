"""SIGTERM and Ctrl-C: note the wish, finish the step, save, leave. This module imports nothing heavy."""

import os
import signal
import threading
import time

from vit.errors import STOPPED


class Stop:
    """Listens for SIGTERM and SIGINT from `listen()` on; a second Ctrl-C leaves at once.

    Python runs signal handlers only between bytecodes, and a compilation can take a minute of C++. So the handlers do
    nothing, and a thread reads the signals' numbers from the wake-up pipe, which C writes at once.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()

    @classmethod
    def listen(cls) -> "Stop":
        """Start listening; call it once, from the main thread, before anything slow."""
        stop = cls()
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        threading.Thread(target=stop._watch, args=(read,), name="signals", daemon=True).start()
        return stop

    def _watch(self, read: int) -> None:
        first = None  # when the first Ctrl-C came; terminals and wrappers may send one twice
        while numbers := os.read(read, 64):
            for number in numbers:
                if number == signal.SIGINT:
                    first = first or time.monotonic()
                    if time.monotonic() - first > 0.3:
                        os._exit(STOPPED)  # finished checkpoints are safe, an unfinished one is cleaned away
                self.asked.set()
