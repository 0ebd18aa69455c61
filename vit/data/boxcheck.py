"""`vit check` for sets with boxes, and the quick look before a run compiles. `vit.report.boxcheck` writes and draws."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import track

from vit.config import BoxData
from vit.data import check
from vit.data.boxforms import Boxes
from vit.data.boxset import BoxListing, counted, listing
from vit.data.boxset import has_boxes as has_boxes
from vit.data.check import CLASSES, MANY, QUICK, Twin
from vit.data.check import verdict as verdict
from vit.data.decode import BadImage, contents, decode
from vit.data.folder import SPLITS, Problem, shown
from vit.data.maskcheck import copies

SMALL, LARGE = 32, 96  # sides of squares that COCO calls small below, and large from
DROP = ", or leave such out: --data.bad-boxes drop"


def quick(found: BoxListing, seconds: float = QUICK) -> None:
    """Note bad images, by their headers and the sizes that their annotations say."""
    check.quick(found, seconds, found.fitted)


@dataclass
class BoxFindings:
    """What a look at every image of a set found.

    `sizes` are heights and widths, 0 where an image is bad; `counts` are the boxes that are no crowds by split and class;
    `sides` are the heights and widths of all boxes in pixels; `twins` are copies of an image, byte for byte, in another split.
    """

    config: BoxData
    listing: BoxListing
    sizes: Int[np.ndarray, "n 2"]
    counts: Int[np.ndarray, "3 K"]
    sides: Float[np.ndarray, "m 2"]
    twins: list[Twin]

    @property
    def fatal(self) -> list[Problem]:
        """What would end a training run."""
        flaws = self.listing.flaws if self.config.bad_boxes == "error" else []
        return [*(p for p in self.listing.problems if p.fatal), *(p._replace(fix=p.fix + DROP) for p in flaws)]


class _Look(NamedTuple):
    digest: bytes
    size: tuple[int, int] = (0, 0)
    boxes: Boxes | None = None
    bad: str = ""


def _look(found: BoxListing, i: int) -> _Look:
    """One image, decoded to its last pixel."""
    digest = b""
    try:
        source = found.read(i)
        data = source if isinstance(source, bytes) else contents(source)
        digest = hashlib.sha256(data).digest()
        height, width = decode(data).shape[:2]
        return _Look(digest, (height, width), found.fitted(i), found.bad.get(i, ""))
    except BadImage as error:
        return _Look(digest, bad=found.bad.get(i) or str(error))


def examine(config: BoxData) -> BoxFindings:
    """Decode every image of a set. Raises `UserError` only where there is nothing to look at."""
    found, console = listing(config), Console(stderr=True)
    count = len(found.names)
    sizes, sides, digests = np.zeros((count, 2), np.int32), [np.zeros((0, 2))], []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        blocks = (range(begin, min(begin + MANY, count)) for begin in range(0, count, MANY))
        looks = (look for block in blocks for look in pool.map(lambda i: _look(found, i), block))
        shown_ = track(looks, "decoding", count, console=console, transient=True, disable=not console.is_terminal)
        for i, look in enumerate(shown_):
            digests.append(look.digest)
            if look.bad:
                found.bad[i] = look.bad
            elif look.boxes is not None:
                sizes[i] = look.size
                sides.append((look.boxes.corners[:, 2:] - look.boxes.corners[:, :2]) * look.size)
    return BoxFindings(config, found, sizes, counted(found), np.concatenate(sides), copies(found, digests))


def told(findings: BoxFindings) -> list[str]:
    """The findings in words, a line each."""
    found, sides = findings.listing, findings.sides
    counts = ", ".join(f"{np.sum(found.splits == k):,} {split}" for k, split in enumerate(SPLITS))
    lines = [f"found {found.form}: {len(found.names):,} images with boxes of {len(found.class_names):,} classes; {counts}"]
    lines += _counts(findings)
    sizes = findings.sizes[findings.sizes[:, 0] > 0]
    for name, those in (("width x height", sizes), ("boxes, width x height", sides)):
        if len(those):
            (h0, w0), (h, w), (h1, w1) = (np.percentile(those, q, axis=0).astype(int) for q in (0, 50, 100))
            lines.append(f"{name}: from {w0} x {h0} to {w1} x {h1} pixels, median {w} x {h}")
    if len(sides):
        areas = np.prod(sides, axis=1)
        small, large = np.mean(areas < SMALL**2), np.mean(areas >= LARGE**2)
        lines.append(
            f"boxes: {small:.0%} small (below {SMALL} x {SMALL} pixels), {large:.0%} large (from {LARGE} x {LARGE} on)"
        )
    per_image = [len(boxes.kinds) for boxes in found.boxes]
    lines.append(f"boxes on an image: up to {max(per_image, default=0):,}; images without: {per_image.count(0):,}")
    crowds = sum(int(boxes.crowd.sum()) for boxes in found.boxes)
    lines.append(f"crowds or difficult: {crowds:,}; reach out of their image and are clipped: {found.clipped:,}")
    lines += [f"bad images: {len(found.bad):,}", f"bad boxes and other faults of annotations: {len(found.flaws):,}"]
    lines.append(f"images that another split has too, byte for byte: {len(findings.twins):,}")
    lines += [f"warning: {found.where(i)} is the same as {found.where(of)}" for i, of, _ in findings.twins[:3]]
    lines += [f"bad: {found.where(i)}: {found.bad[i]}" for i in sorted(found.bad)[:3]]
    some = [f"{'error' if p.fatal else 'warning'}: {p.what} ({p.where})" for p in found.problems + found.flaws]
    return lines + some[:10] + [f"… and {len(some) - 10:,} more problems" for _ in some[10:11]]


def _counts(findings: BoxFindings) -> list[str]:
    """Boxes of each class in each split, as a table; of many classes the sums alone."""
    rows = [
        *zip(map(shown, findings.listing.class_names), findings.counts.T, strict=True),
        ("all", findings.counts.sum(axis=1)),
    ]
    rows = rows if len(rows) <= CLASSES + 1 else rows[-1:]
    width = max(len(name[:30]) for name, _ in rows)
    head = " " * width + "".join(f"{split:>10}" for split in SPLITS) + "   boxes"
    return [head, *(f"{name[:30]:<{width}}" + "".join(f"{n:>10,}" for n in row) for name, row in rows)]
