"""`vit check` for sets with masks, and the quick look before a run compiles. `vit.report.maskcheck` writes and draws."""

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from rich.console import Console
from rich.progress import track

from vit.config import MaskData
from vit.data.check import CLASSES, MANY, QUICK, Twin
from vit.data.decode import BadImage, contents, decode, header
from vit.data.folder import ENDINGS, SPLITS, Listing, Problem, shown
from vit.data.images import MEND, MOST_BAD, all_bad
from vit.data.maskforms import keys, sorted_out, walked
from vit.data.maskset import FEW, VOID, Fault, MaskListing, find, listing, named
from vit.errors import UserError


def quick(found: MaskListing, seconds: float = QUICK) -> None:
    """Note bad pairs: of 64 at random, and of as many more as the time allows. Images by their headers, masks by all pixels."""
    order = np.random.default_rng(0).permutation(len(found.pairs)).tolist()
    deadline, looked, empty = time.monotonic() + seconds, 0, 0

    def look(i: int) -> bool | Fault:
        """Whether all of the mask is void."""
        try:
            label = found.mask(i)[0]
            try:
                image = header(found.read(i))
            except BadImage as error:
                return Fault(str(error), shown(os.path.join(found.root, found.names[i])), MEND)
            size = image.height, image.width
            found.fits(i, size[::-1] if image.orientation >= 5 else size, label.shape)
            return bool((label == VOID).all())
        except Fault as fault:
            return fault

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for begin in range(0, len(order), FEW):
            block = [i for i in order[begin : begin + FEW] if i not in found.bad]
            for i, result in zip(block, pool.map(look, block), strict=True):
                if isinstance(result, Fault):
                    found.note(i, result)
                elif found.splits[i] == 0:
                    looked, empty = looked + 1, empty + result
            if time.monotonic() > deadline:
                break
    if looked and looked == empty:
        what = f"all pixels of the {looked:,} training masks looked at are void"
        found.problems.append(Problem(what, shown(found.root), "leave ids that are classes out of --data.void"))


def has_masks(folder: str) -> bool:
    """Whether a folder is meant as a set with masks, whole or not, rather than one of class folders."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        return False
    if (root / "ImageSets" / "Segmentation").is_dir():
        return True
    files = [sorted_out(name) for name in walked(root, ENDINGS)]
    images, masks = ({keys(f.stem, r == "mask")[-1] for f in files if f.role == r} for r in ("image", "mask"))
    pngs = any(file.role == "mask" and file.name.lower().endswith(".png") for file in files)
    if images and masks and (pngs or 2 * len(images & masks) >= len(masks)):  # masks of other formats are refused later
        return True
    try:
        found = find(root)
    except UserError:
        return any(path.parent.name == "annotations" for path in root.glob("*/*.json"))
    if found is None:
        return False
    if found.paint is not None or found.mask is not None:
        return True
    try:
        listing(MaskData(dir=folder)).ids(0)  # class folders may have such names, too; photographs are no masks
    except BadImage:
        return any((place / "palette.txt").is_file() for place in found.places)
    return True


@dataclass
class MaskFindings:
    """What a look at every pair of a set found.

    `sizes` are heights and widths, 0 where a pair is bad; `pixels` counts those of each class, and last of void, by split;
    `empty` are the pairs whose masks are all void; `twins` are copies of an image, byte for byte, in another split.
    """

    config: MaskData
    listing: MaskListing
    sizes: Int[np.ndarray, "n 2"]
    pixels: Int[np.ndarray, "3 K1"]
    empty: list[int]
    twins: list[Twin]

    @property
    def fatal(self) -> list[Problem]:
        """What would end a training run."""
        return [problem for problem in self.listing.problems if problem.fatal]


class _Look(NamedTuple):
    digest: bytes
    size: tuple[int, int] = (0, 0)
    counts: Int[np.ndarray, "256"] | None = None
    fault: Fault | None = None


def _look(found: MaskListing, i: int) -> _Look:
    """One pair, decoded to its last pixel."""
    digest = b""
    try:
        try:
            source = found.read(i)
            data = source if isinstance(source, bytes) else contents(source)
            digest = hashlib.sha256(data).digest()
            image = decode(data)
        except BadImage as error:
            raise Fault(str(error), shown(os.path.join(found.root, found.names[i])), MEND) from error
        label = found.mask(i)[0] if found.class_names else np.full(found.ids(i)[0].shape, VOID, np.uint8)
        found.fits(i, image.shape[:2], label.shape)
        return _Look(digest, image.shape[:2], np.bincount(label.ravel(), minlength=256))
    except Fault as fault:
        return _Look(digest, fault=found.faults.get(i) or fault)


def examine(config: MaskData) -> MaskFindings:
    """Decode every pair of a set. Raises `UserError` only where there is nothing to look at."""
    found = listing(config)
    try:
        named(found, config)
    except UserError as error:
        found.problems.append(Problem(error.what, error.where, error.fix))
        found.class_names = []
    K, count = len(found.class_names), len(found.pairs)
    sizes, pixels = np.zeros((count, 2), np.int32), np.zeros((len(SPLITS), K + 1), np.int64)
    digests, empty, console = [], [], Console(stderr=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        blocks = (range(begin, min(begin + MANY, count)) for begin in range(0, count, MANY))
        looks = (look for block in blocks for look in pool.map(lambda i: _look(found, i), block))
        shown_ = track(looks, "decoding", count, console=console, transient=True, disable=not console.is_terminal)
        for i, look in enumerate(shown_):
            digests.append(look.digest)
            if look.fault is not None:
                found.note(i, look.fault)
            elif look.counts is not None:
                sizes[i] = look.size
                pixels[found.splits[i]] += look.counts[[*range(K), VOID]]
                empty += [i] if look.counts[:K].sum() == 0 else []
    return MaskFindings(config, found, sizes, pixels, empty if K else [], copies(found, digests))


def copies(found: Listing, digests: list[bytes]) -> list[Twin]:
    """Images that an earlier split has, too, byte for byte."""
    first: dict[bytes, int] = {}
    twins = []
    for i in np.argsort(found.splits, kind="stable").tolist():
        of = first.setdefault(digests[i], i) if digests[i] else i
        if found.splits[of] != found.splits[i]:
            twins.append(Twin(i, of, True))
    return twins


def told(findings: MaskFindings) -> list[str]:
    """The findings in words, a line each."""
    found = findings.listing
    K = len(found.class_names)
    counts = ", ".join(f"{np.sum(found.splits == k):,} {split}" for k, split in enumerate(SPLITS))
    lines = [f"found {found.form}: {len(found.pairs):,} images with masks of {K:,} classes; {counts}", *_shares(findings)]
    sizes = findings.sizes[findings.sizes[:, 0] > 0]
    if len(sizes):
        (h0, w0), (h, w), (h1, w1) = (np.percentile(sizes, q, axis=0).astype(int) for q in (0, 50, 100))
        lines.append(f"width x height: from {w0} x {h0} to {w1} x {h1} pixels, median {w} x {h}")
    lines += [f"bad pairs: {len(found.bad):,}", f"masks that are all void: {len(findings.empty):,}"]
    lines.append(f"images that another split has too, byte for byte: {len(findings.twins):,}")
    lines += [f"warning: {found.where(i)} is the same as {found.where(of)}" for i, of, _ in findings.twins[:3]]
    lines += [f"bad: {found.where(i)}: {found.bad[i]}" for i in sorted(found.bad)[:3]]
    never = [name for name, n in zip(found.class_names, findings.pixels[0], strict=False) if not n]
    if never and found.seen is None:  # else it is among the problems
        lines.append(f"warning: {len(never)} of {K} classes are in no training mask: {', '.join(never):.60}")
    some = [f"{'error' if p.fatal else 'warning'}: {p.what} ({p.where})" for p in found.problems]
    return lines + some[:10] + [f"… and {len(some) - 10:,} more problems" for _ in some[10:11]]


def _shares(findings: MaskFindings) -> list[str]:
    """Each class's share of a split's pixels that are not void, and void's of all, as a table."""
    names = [shown(name)[:30] for name in findings.listing.class_names]
    if not names or len(names) > CLASSES:
        return []
    width = max(map(len, [*names, "void"]))
    classes, all_ = findings.pixels[:, :-1], findings.pixels.sum(axis=1)
    shares = classes / np.maximum(1, classes.sum(axis=1, keepdims=True))
    rows = [*zip(names, shares.T, strict=True), ("void", findings.pixels[:, -1] / np.maximum(1, all_))]

    def cell(share: float, k: int) -> str:
        return f"{share:>10.2%}" if all_[k] else f"{'-':>10}"

    head = " " * width + "".join(f"{split:>10}" for split in SPLITS) + "   of pixels"
    return [head, *(f"{name:<{width}}" + "".join(cell(share, k) for k, share in enumerate(row)) for name, row in rows)]


def verdict(findings: MaskFindings, folder: Any) -> None:
    """Raise `UserError` for the first thing that would end a training run; `folder` holds the lists of all."""
    found, fatal = findings.listing, findings.fatal
    if fatal:
        what, where, fix, _ = fatal[0]
        raise UserError(what, where, f"{fix} ({len(fatal):,} such, all in {folder / 'problems.csv'})")
    bad, count = found.bad, len(found.pairs)
    if bad and (findings.config.bad_images == "error" or len(bad) > MOST_BAD * count):
        i = min(bad)
        fix = found.faults[i].fix if i in found.faults else MEND
        skip = ", or train with --data.bad-images skip" if len(bad) <= MOST_BAD * count else ""
        what = f"{len(bad):,} of {count:,} pairs are bad, the first: {bad[i]}"
        raise UserError(what, found.where(i), f"{fix}; all are in {folder / 'bad_files.csv'}{skip}")
    for k, split in enumerate(SPLITS):
        here = set(np.flatnonzero(found.splits == k).tolist())
        if here and bad.keys() >= here:
            raise all_bad(found, split)
        if split == "train" and here and set(findings.empty) | bad.keys() >= here:
            what = f"all pixels of the {len(here):,} training masks are void"
            raise UserError(what, shown(found.root), "leave ids that are classes out of --data.void")
