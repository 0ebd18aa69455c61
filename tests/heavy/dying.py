"""A program that is sent a signal at a chosen place: `python tests/heavy/dying.py SIGNAL PLACE NUMBER PROGRAM ARGUMENTS…`.

PLACE is a function of vit; the signal comes before its NUMBER-th call (or after, for `PLACE+`). `compile` is NUMBER tenths of
a second after the first update began.
"""

import importlib
import os
import runpy
import signal
import sys
import threading


def strike(number):
    """The signal, to ourselves; a kill takes effect here."""
    os.kill(os.getpid(), number)


def install(number, place, count):
    """Arrange for the signal."""
    if place == "compile":
        from vit.training.log import Log

        say = Log.say

        def said(self, message):
            say(self, message)
            if message == "compiling…":
                threading.Timer(count / 10, strike, [number]).start()

        Log.say = said
        return
    after, place = place.endswith("+"), place.rstrip("+")
    module, _, name = place.rpartition(".")
    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError:
        module, _, kind = module.rpartition(".")
        owner = getattr(importlib.import_module(module), kind)
    original, calls = getattr(owner, name), iter(range(1, 10**9))

    def wrapped(*args, **options):
        now = next(calls) == count
        if now and not after:
            strike(number)
        result = original(*args, **options)
        if now and after:
            strike(number)
        return result

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    from vit.training.stop import Stop

    listen, wanted = Stop.listen, sys.argv[1:4]
    number = getattr(signal, wanted[0])

    def listening():
        # The places need jax, which must not be imported before the program listens to signals.
        stop = listen()
        install(number, wanted[1], int(wanted[2]))
        return stop

    Stop.listen = staticmethod(listening)
    sys.argv = sys.argv[4:]
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    runpy.run_path(sys.argv[0], run_name="__main__")
