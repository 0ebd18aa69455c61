"""The one strict mapper: name tables, and what happens to an array on its way.

A rule makes parameters of ours of arrays of theirs, and back. `{i}` in both stands for the block.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Num

from vit.errors import UserError

Arrays = dict[str, np.ndarray]
SHOWN = 12  # names in an error


class Way(NamedTuple):
    """What happens to arrays: `read` theirs → ours, `write` ours and their number → theirs."""

    read: Callable[[Sequence[np.ndarray]], Num[np.ndarray, "..."]]
    write: Callable[[Num[np.ndarray, "..."], int], Sequence[np.ndarray]]


class Rule(NamedTuple):
    """Parameters of ours and arrays of theirs that hold the same values, and the way between.

    Of several on either side each is an equal part, in this order: along the last axis here, along the first there.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    way: Way


def rule(ours: str, *theirs: str, way: Way | None = None) -> Rule:
    """A rule for one parameter; without a way it is the same array."""
    return Rule((ours,), theirs, way or SAME)


class Table(NamedTuple):
    """A layout: its rules, and patterns of names that this backbone has no use for, each with what to call them.

    `blank` are arrays that another program wants to find though they carry nothing.
    """

    rules: list[Rule]
    unused: dict[str, str] = {}  # noqa: RUF012
    blank: Arrays = {}  # noqa: RUF012


SAME = Way(lambda xs: np.concatenate(xs) if len(xs) > 1 else xs[0], lambda x, n: np.split(x, n) if n > 1 else [x])
# PyTorch's Linear holds (out, in), ours (in, out).
MATRIX = Way(lambda xs: np.concatenate([x.T for x in xs], axis=1), lambda x, n: [part.T for part in np.split(x, n, axis=1)])


def shaped(ours: tuple[int, ...], theirs: tuple[int, ...]) -> Way:
    """The same values in another shape."""
    return Way(lambda xs: xs[0].reshape(ours), lambda x, n: [x.reshape(theirs)])


def patches(P: int, channels: int) -> Way:
    """PyTorch's convolution (D, C, P, P) as a matrix (P·P·C, D)."""
    return Way(
        lambda xs: xs[0].transpose(2, 3, 1, 0).reshape(P * P * channels, -1),
        lambda x, n: [x.reshape(P, P, channels, -1).transpose(3, 2, 0, 1)],
    )


def dense(ours: str, *theirs: str, bias: bool = True) -> list[Rule]:
    """A PyTorch Linear, or several side by side."""
    kernel = rule(f"{ours}/kernel", *(f"{name}.weight" for name in theirs), way=MATRIX)
    return [kernel, *([rule(f"{ours}/bias", *(f"{name}.bias" for name in theirs))] if bias else [])]


def norm(ours: str, theirs: str) -> list[Rule]:
    """A PyTorch LayerNorm."""
    return [rule(f"{ours}/scale", f"{theirs}.weight"), rule(f"{ours}/bias", f"{theirs}.bias")]


def in_blocks(rules: Iterable[Rule], depth: int) -> list[Rule]:
    """Rules with `{i}` for every block, the others once."""
    every = []
    for one in rules:
        for i in range(depth) if "{i}" in one.ours[0] else [0]:
            ours, theirs = (tuple(name.replace("{i}", str(i)) for name in names) for names in one[:2])
            every.append(Rule(ours, theirs, one.way))
    return every


def to_ours(arrays: Arrays, table: Table, shapes: dict[str, tuple[int, ...]], where: str) -> tuple[Arrays, list[str]]:
    """Our parameters, float32, and a line on each kind of array that was left out.

    Raises `UserError` that lists every key left over on either side, or whose shape doesn't fit.
    """
    wanted = {name for rule in table.rules for name in rule.theirs}
    left_out = {what for name in arrays.keys() - wanted for pattern, what in table.unused.items() if re.match(pattern, name)}
    over = sorted(n for n in arrays.keys() - wanted if not any(re.match(pattern, n) for pattern in table.unused))
    lacking = sorted(wanted - arrays.keys())
    made = {name for rule in table.rules for name in rule.ours}
    faults = {"the file lacks": lacking, "nothing here takes": over}
    faults |= {"the table doesn't fill": sorted(shapes.keys() - made), "the model lacks": sorted(made - shapes.keys())}
    _refuse(faults, where)
    params, bad = {}, []
    for rule in table.rules:
        theirs = [np.asarray(arrays[name], np.float32) for name in rule.theirs]
        try:
            parts = np.split(rule.way.read(theirs), len(rule.ours), axis=-1)
        except (ValueError, IndexError):
            parts = [np.zeros(())] * len(rule.ours)
        params |= dict(zip(rule.ours, map(np.ascontiguousarray, parts), strict=True))
        if any(params[name].shape != shapes[name] for name in rule.ours):
            bad.append(f"{' + '.join(rule.theirs)} {' + '.join(str(x.shape) for x in theirs)}")
    _refuse({"these have another shape than the model's": bad}, where)
    return params, [f"left out: {what}" for what in sorted(left_out)]


def to_theirs(params: Arrays, table: Table, where: str) -> Arrays:
    """The other side's arrays. Raises `UserError` that lists what the layout has no place for."""
    made = {name for rule in table.rules for name in rule.ours}
    faults = {"the layout has no place for": sorted(params.keys() - made), "the run lacks": sorted(made - params.keys())}
    _refuse(faults, where)
    arrays = {name: x for name, x in table.blank.items()}
    for rule in table.rules:
        whole = np.concatenate([params[name] for name in rule.ours], axis=-1)
        parts = rule.way.write(whole, len(rule.theirs))
        arrays |= dict(zip(rule.theirs, map(np.ascontiguousarray, parts), strict=True))
    return arrays


def _refuse(faults: dict[str, list[str]], where: str) -> None:
    words = []
    for what, names in faults.items():
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            words.append(f"{what} {', '.join(names[:SHOWN])}{more}")
    if words:
        fix = "give the whole file as its library saved it, of a family that the README lists"
        raise UserError(f"the weights don't fit: {'; '.join(words)}", where, fix)
