"""`vit check`: a look at every image of a data set before anything is compiled. `vit.report.check` writes and draws."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from rich.console import Console
from rich.progress import track

from vit.config import FolderData
from vit.data.alike import SIDE, near, thumbnail
from vit.data.decode import BadImage, contents, decode, header
from vit.data.folder import SPLITS, Listing, Problem, listing
from vit.data.images import MOST_BAD, all_bad
from vit.errors import UserError

QUICK = 2.0  # seconds that a run spends on headers before it compiles
FEW, MANY = 64, 512  # images handed to the threads at a time: where it may end early, and where all are looked at
CLASSES = 40  # beyond that they aren't named one by one


class Twin(NamedTuple):
    """Image `i` is a copy of image `of`, byte for byte if `exact`, which stands in the same or an earlier split."""

    i: int
    of: int
    exact: bool


@dataclass
class Findings:
    """What a look at every image of a data set found. `sizes` are heights and widths, upright, 0 where an image is bad."""

    config: FolderData
    listing: Listing
    sizes: Int[np.ndarray, "B 2"]
    twins: list[Twin]

    @property
    def conflicts(self) -> list[Twin]:
        """The same bytes under two labels."""
        labels = self.listing.labels
        return [twin for twin in self.twins if twin.exact and labels[twin.i] != labels[twin.of]]

    @property
    def across(self) -> list[Twin]:
        """Copies of what another split has."""
        splits = self.listing.splits
        return [twin for twin in self.twins if splits[twin.i] != splits[twin.of]]

    @property
    def fatal(self) -> list[Problem]:
        """What would end a training run."""
        return [problem for problem in self.listing.problems if problem.fatal]


def quick(found: Listing, seconds: float = QUICK, test: Callable[[int], Any] | None = None) -> None:
    """Note bad images in `found.bad`, by their headers: of 64 at random, and of as many more as the time allows.

    `test(i)` looks at one; the default at its header alone.
    """
    test = test or (lambda i: header(found.read(i)))
    order = np.random.default_rng(0).permutation(len(found.names)).tolist()
    deadline = time.monotonic() + seconds

    def look(i: int) -> str:
        try:
            if i not in found.bad:
                test(i)
        except BadImage as error:
            return str(error)
        return ""

    for n, why in enumerate(_in_threads(look, order, FEW), 1):
        if why:
            found.bad[order[n - 1]] = why
        if n >= FEW and time.monotonic() > deadline:
            break


def _in_threads(look: Callable[[int], Any], order: Sequence[int], block: int) -> Iterator[Any]:
    """`look(i)` of one after the other; so many are handed out at a time, and nothing beyond them is begun."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for begin in range(0, len(order), block):
            yield from pool.map(look, order[begin : begin + block])


class _Look(NamedTuple):
    digest: bytes
    size: tuple[int, int] = (0, 0)
    small: UInt8[np.ndarray, "16 16"] | None = None
    bad: str = ""


def _look(found: Listing, i: int) -> _Look:
    """One image, decoded to its last pixel."""
    digest = b""
    try:
        source = found.read(i)
        data = source if isinstance(source, bytes) else contents(source)
        digest = hashlib.sha256(data).digest()
        image = decode(data)
        return _Look(digest, image.shape[:2], thumbnail(image), found.bad.get(i, ""))
    except BadImage as error:
        return _Look(digest, bad=found.bad.get(i) or str(error))


def examine(config: FolderData) -> Findings:
    """Decode every image of a data set. Raises `UserError` only where there is nothing to look at."""
    found = listing(config)
    count = len(found.names)
    sizes, small = np.zeros((count, 2), np.int32), np.zeros((count, SIDE, SIDE), np.uint8)
    digests: list[bytes] = []
    console = Console(stderr=True)
    looks = _in_threads(lambda i: _look(found, i), range(count), MANY)
    for i, look in enumerate(track(looks, "decoding", count, console=console, transient=True, disable=not console.is_terminal)):
        digests.append(look.digest)
        if look.bad:
            found.bad[i] = look.bad
        elif look.small is not None:
            sizes[i], small[i] = look.size, look.small
    return Findings(config, found, sizes, _twins(found, digests, small))


def _twins(found: Listing, digests: list[bytes], small: UInt8[np.ndarray, "B 16 16"]) -> list[Twin]:
    """Copies: exact ones anywhere, near ones in different splits."""
    first: dict[bytes, int] = {}
    twins = []
    for i in np.argsort(found.splits, kind="stable").tolist():
        if digests[i] and first.setdefault(digests[i], i) != i:
            twins.append(Twin(i, first[digests[i]], True))
    good = np.array([i for i in range(len(digests)) if i not in found.bad], np.int64)
    for a, b in near(small[good], found.splits[good]).items():
        i, of = int(good[a]), int(good[b])
        if digests[i] != digests[of]:
            twins.append(Twin(i, of, False))
    return sorted(twins)


def told(findings: Findings) -> list[str]:
    """The findings in words, a line each."""
    found, bad = findings.listing, findings.listing.bad
    lines = [f"found {found.form}: {len(found.names):,} images of {len(found.class_names):,} classes", *_counts(found)]
    sizes = findings.sizes[findings.sizes[:, 0] > 0]
    if len(sizes):
        (h0, w0), (h, w), (h1, w1) = (np.percentile(sizes, q, axis=0).astype(int) for q in (0, 50, 100))
        lines.append(f"width x height: from {w0} x {h0} to {w1} x {h1} pixels, median {w} x {h}")
    exact = [twin for twin in findings.twins if twin.exact]
    lines.append(f"bad files: {len(bad):,}")
    across = len([twin for twin in findings.across if twin.exact])
    lines.append(
        f"exact duplicates: {len(exact):,}, across splits {across:,}, under different labels {len(findings.conflicts):,}"
    )
    lines.append(f"near duplicates across splits: {len(findings.twins) - len(exact):,}")
    for name, those in (("label conflict", findings.conflicts), ("across splits", findings.across)):
        lines += [f"warning: {name}: {found.where(i)} is {_how(exact)} {found.where(of)}" for i, of, exact in those[:3]]
        lines += [f"warning: … and {len(those) - 3:,} more" for _ in those[3:4]]
    return lines + [f"{'error' if p.fatal else 'warning'}: {p.what} ({p.where})" for p in found.problems]


def _how(exact: bool) -> str:
    return "the same as" if exact else "nearly the same as"


def _counts(found: Listing) -> list[str]:
    """Images of each class in each split, as a table; of many classes the sums alone."""
    counts = np.zeros((len(found.class_names) + 1, len(SPLITS)), int)
    np.add.at(counts, (found.labels, found.splits.astype(int)), 1)
    counts[-1] = counts.sum(axis=0)
    rows = [*zip(map(_plain, found.class_names), counts, strict=False), ("all", counts[-1])]
    shown = rows if len(rows) <= CLASSES + 1 else rows[-1:]
    width = max(len(name) for name, _ in shown)
    head = " " * width + "".join(f"{split:>10}" for split in SPLITS)
    return [head, *(f"{name:<{width}}" + "".join(f"{n:>10,}" for n in row) for name, row in shown)]


def _plain(name: str) -> str:
    line = "".join(c if c.isprintable() else "?" for c in name)
    return line if len(line) <= 30 else line[:29] + "…"


def verdict(findings: Findings, folder: Any) -> None:
    """Raise `UserError` for the first thing that would end a training run; `folder` holds the lists of all."""
    found, fatal = findings.listing, findings.fatal
    if fatal:
        what, where, fix, _ = fatal[0]
        raise UserError(what, where, f"{fix} ({len(fatal):,} such, all in {folder / 'problems.csv'})")
    bad, count = found.bad, len(found.names)
    if bad and (findings.config.bad_images == "error" or len(bad) > MOST_BAD * count):
        i = min(bad)
        skip = ", or train with --data.bad-images skip" if len(bad) <= MOST_BAD * count else ""
        what = f"{len(bad):,} of {count:,} images are bad, the first: {bad[i]}"
        raise UserError(what, found.where(i), f"mend or remove those in {folder / 'bad_files.csv'}{skip}")
    for k, split in enumerate(SPLITS):
        if bad and np.any(found.splits == k) and bad.keys() >= set(np.flatnonzero(found.splits == k).tolist()):
            raise all_bad(found, split)
