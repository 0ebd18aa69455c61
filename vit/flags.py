"""The command line: `--config FILE` picks a configuration, and every one of its fields is a typed flag."""

import contextlib
import dataclasses
import difflib
import io
import re
import runpy
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from vit.config import FREE, Config, fields, validate
from vit.errors import UserError
from vit.limits import allowed, flag

T = TypeVar("T")


def parse_config(args: Sequence[str], default: Path) -> Config:
    """The run that a command line asks for: the config file's values, then the flags over them.

    Raises `UserError` for a missing file, an unknown flag, a value that isn't possible.
    """
    path, rest = default, list(args)
    while found := [i for i, arg in enumerate(rest) if arg == "--config" or arg.startswith("--config=")]:
        i = found[0]
        _, equals, value = rest[i].partition("=")
        if not equals and i + 1 == len(rest):
            raise UserError("--config needs a file", "the command line", "give one, as --config configs/digits.py")
        path = Path(value if equals else rest[i + 1])
        del rest[i : i + (1 if equals else 2)]
    described = f"Settings of {path}; --config FILE picks another file, and the flags change single values."
    config = parse(rest, load_config(path), described)
    # What is chosen later: unless given here. Weights decide the model's sizes, and how pixels are normalised.
    auto = dict.fromkeys(config.auto)
    if config.weights:
        names = [f.name for f in dataclasses.fields(config.model) if f.name not in FREE]
        auto |= dict.fromkeys([*(f"model.{name}" for name in names), "data.mean", "data.std"])
    given = {arg.partition("=")[0].replace("_", "-") for arg in rest if arg.startswith("--")}
    config = dataclasses.replace(config, auto=tuple(name for name in auto if not {flag(name), _no(name)} & given))
    return config if config.workdir else dataclasses.replace(config, workdir=f"runs/{path.stem}-s{config.seed}")


def load_config(path: Path) -> Config:
    """What `get_config()` in a Python file returns."""
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0)
        fix = "give the path of a file with get_config(), as configs/digits.py"
        fix = f"did you mean {path.parent / near[0]}?" if near else fix
        raise UserError("there is no such config file", str(path), fix)
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        config = get_config() if get_config else None
    except UserError as error:
        raise UserError(error.what, f"{path}, {error.where}", error.fix) from None
    except (Exception, SystemExit) as error:
        what = f"the config file fails: {type(error).__name__}: {error}"
        raise UserError(what, str(path), "run it with python to see where") from error
    if get_config is None:
        raise UserError("the config file has no get_config", str(path), "define get_config() -> vit.config.Config")
    if not isinstance(config, Config):
        what = "nothing" if config is None else type(config).__name__
        raise UserError(f"get_config() returned {what}, not a Config", str(path), "return a vit.config.Config")
    validate(config, str(path))
    return config


def parse(args: Sequence[str], default: T, description: str) -> T:
    """A dataclass's fields as flags. `--help` prints them; any mistake is a `UserError`."""
    import tyro

    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            config, unknown = tyro.cli(
                cast(Any, type(default)),
                config=(tyro.conf.AvoidSubcommands,),
                args=list(args),
                default=default,
                description=description,
                return_unknown_args=True,
            )
    except SystemExit as leaving:
        if not leaving.code:  # --help
            raise
        # tyro draws a box: its first paragraph is the message.
        lines = [line.strip("│ ") for line in printed.getvalue().splitlines()[1:]]
        message = re.split(r" ?─{4,}", " ".join(lines))[0]
        hints = {flag(name): hint for name, (hint, _) in fields(default).items()}
        named = next((word for word in re.findall(r"--[\w.-]+", message) if word in hints), "")
        given = _values(args, named)
        message = f"{named} can't be {given:.40}" if given else f"{named} needs a value" if named else message
        raise UserError(message, "the command line", f"give {allowed(hints[named])}" if named else "see --help") from None
    if unknown:
        raise _unknown(unknown[0], default)
    validate(config, "the command line")
    return cast(T, config)


def as_flags(config: object) -> str:
    """The command line that would give this configuration."""
    words = []
    for name, (_, value) in fields(config).items():
        if isinstance(value, bool):
            words.append(flag(name) if value else _no(name))
        else:
            words += [flag(name), *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


def _no(name: str) -> str:
    """`data.stream` → `--data.no-stream`."""
    head, dot, last = name.rpartition(".")
    return flag(f"{head}{dot}no-{last}")


def _values(args: Sequence[str], name: str) -> str:
    """What stands behind the last flag of this name, in quotes."""
    words: list[str] = []
    taking = False
    for arg in args:
        if arg.startswith("--"):
            head, equals, value = arg.partition("=")
            if taking := head.replace("_", "-") == name:
                words = [value] if equals else []
        elif taking:
            words.append(arg)
    return repr(" ".join(words)) if words else ""


def _unknown(given: str, config: object) -> UserError:
    if not given.startswith("-"):
        return UserError(
            f"unexpected argument {given!r:.40}", "the command line", "give flags as --name value; --help lists them"
        )
    given = given.partition("=")[0].replace("_", "-")

    def likeness(name: str) -> float:
        # `--lr` should find `--optim.lr`: compare with the last part of the name as well.
        whole, last = name[2:], name.rpartition(".")[2].lstrip("-")
        return max(difflib.SequenceMatcher(None, given.lstrip("-"), part).ratio() for part in (whole, last))

    nearest = max([flag(name) for name in fields(config)] + (["--config"] if isinstance(config, Config) else []), key=likeness)
    return UserError(f"there is no flag {given}", "the command line", f"did you mean {nearest}? --help lists them all")
