"""Which parameters a run trains: all, but for those that `--freeze` names; with LoRA its factors and the head alone."""

import difflib
import fnmatch
import re
from collections.abc import Iterable

from vit.config import Config
from vit.errors import UserError


def trained(config: Config, paths: Iterable[str]) -> list[str]:
    """The paths that are trained; a pattern takes `*`, and a folder (`patch_embed`, `blocks/0`) stands for all below it.

    Raises `UserError` for a pattern that matches nothing, or if nothing is left to train.
    """
    paths = sorted(paths)
    frozen = {path for pattern in config.freeze for path in matching(pattern, paths)}
    if config.lora.rank:
        frozen |= {path for path in paths if not re.search(r"^head|/lora_[ab]$", path)}
    left = [path for path in paths if path not in frozen]
    if not left:
        what = f"--freeze {' '.join(config.freeze)} leaves nothing to train"
        raise UserError(what, f"the model's {len(paths)} parameters", "give fewer patterns; the head is called head")
    return left


def matching(pattern: str, paths: list[str]) -> list[str]:
    """The paths that a pattern means. Raises `UserError` if there are none."""
    found = [path for path in paths if fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}/*")]
    if not found:
        parts = [path.split("/") for path in paths]
        names = {"/".join(part[:end]) for part in parts for end in range(1, len(part) + 1)}
        near = difflib.get_close_matches(pattern, sorted(names), n=3, cutoff=0.0)
        raise UserError(f"--freeze {pattern!r:.60} matches no parameter", "the model's parameters", f"try {', '.join(near)}")
    return found
