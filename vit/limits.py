"""Which values a setting may take: said in its type hint, as `Annotated[float, Range(0, 1)]`, checked, told in words."""

import math
import struct
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from vit.errors import UserError

INT32 = 2**31 - 1  # steps, sizes and ids are int32 on the device


@dataclass(frozen=True)
class Range:
    """The values that a number may take; `open` ends are excluded, and nan and inf always are."""

    low: float
    high: float = math.inf
    open: Literal["", "low", "high"] = ""

    def __contains__(self, x: Any) -> bool:
        if isinstance(x, bool) or not isinstance(x, int | float):
            return False
        if isinstance(x, float):
            try:
                (x,) = struct.unpack("f", struct.pack("f", x))  # what float32 makes of it: 1e-50 is 0, 1e50 too large
            except OverflowError:
                return False
            if not math.isfinite(x):
                return False
        above = x > self.low if self.open == "low" else x >= self.low
        return above and (x < self.high if self.open == "high" else x <= self.high)

    def __str__(self) -> str:
        low = f"greater than {self.low}" if self.open == "low" else f"at least {self.low}"
        if self.high in (math.inf, INT32):
            return low
        return f"{low} and {'less than' if self.open == 'high' else 'at most'} {self.high}"


Count = Annotated[int, Range(1, INT32)]
Natural = Annotated[int, Range(0, INT32)]
Positive = Annotated[float, Range(0, open="low")]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1, open="high")]


def flag(name: str) -> str:
    """`optim.weight_decay` → `--optim.weight-decay`."""
    return "--" + name.replace("_", "-")


def allowed(hint: Any) -> str:
    """What a field's type hint admits, in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return f"{allowed(args[0])}, once or more"
    if origin is Literal:
        return f"one of: {', '.join(map(str, args))}"
    kind, limits = (args[0], args[1]) if origin is Annotated else (hint, None)
    kinds = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a text"}
    return kinds.get(kind, str(kind)) + (f", {limits}" if limits else "")


def check(name: str, hint: Any, value: Any, where: str) -> None:
    """Raise `UserError` if the hint doesn't admit the value."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, tuple):
        for item in value:
            check(name, args[0], item, where)
        return
    if origin is tuple:
        good = False
    elif origin is Literal:
        good = value in args
    else:
        kind, limits = (args[0], args[1]) if origin is Annotated else (hint, None)
        limits = limits or (Range(-math.inf) if kind is float else None)
        good = value in limits if limits else isinstance(value, kind)
        good &= not (kind is int and isinstance(value, float))
    if not good:
        fix = f"give {allowed(hint)}{', as a tuple' if origin is tuple else ''}"
        raise UserError(f"{flag(name)} can't be {value!r:.40}", where, fix)
