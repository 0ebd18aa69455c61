"""(seed, batch index) → a batch. Nothing else decides it, so a resumed run sees what it would have seen.

A batch is a dict of arrays: `image` uint8 (B, H, W, C), `label` int32 (B,) or uint8 (B, H, W), `id` int32 (B,), `mask` bool
(B,), which is False on padding, and whatever else a source gives. In a run of several processes each makes its own part, and
the parts in order are the batch.
"""

import functools
import os
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from vit.data.sources import Source

Batch = dict[str, np.ndarray]
T = TypeVar("T")


@functools.lru_cache(maxsize=4)  # Grain's threads read on both sides of an epoch's end
def permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the examples in one epoch."""
    return np.random.default_rng((seed, epoch)).permutation(length)


def order(positions: np.ndarray, length: int, seed: int) -> np.ndarray:
    """Which example stands at each position of the endless training stream, epoch after epoch."""
    epochs, places = np.divmod(positions, length)
    out = np.empty_like(places)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        out[here] = permutation(length, seed, int(epoch))[places[here]]
    return out


class Batches:
    """The training batches of a source, from any index on.

    Args:
      source: the training split.
      seed: of the order.
      batch_size: of the whole batch, over all processes.
      part: (number of this process, how many there are).
      stream: read through Grain's threads as the batches are needed; else examples are kept in memory when they have been
        needed once, if they are the same each time.
    """

    def __init__(self, source: Source, seed: int, batch_size: int, part: tuple[int, int] = (0, 1), stream: bool = False):
        self.source, self.seed, self.batch_size, self.part = source, seed, batch_size, part
        self.streamed = stream or source.drawn_anew
        self.kept: Batch = {}  # room for every example, and below which of them are there
        self.made = np.zeros(len(source), bool)

    def places(self, index: int) -> np.ndarray:
        """Places in the source of this process's part of batch `index`."""
        size = self.batch_size // self.part[1]
        start = index * self.batch_size + self.part[0] * size
        return order(start + np.arange(size), len(self.source), self.seed)

    def starting_at(self, index: int) -> Iterator[Batch]:
        """Batches `index`, `index` + 1, … without end."""
        if self.streamed:
            yield from self._streamed(index)
            return
        while True:
            places = self.places(index)
            for place in places[~self.made[places]].tolist():
                self._keep(place)
            yield {name: x[places] for name, x in self.kept.items()}
            index += 1

    def _keep(self, place: int) -> None:
        """Make an example when it is first needed; in place of a bad one the next good one, the first after the last."""
        good = place
        while (example := self.source[good]).get("bad", False):
            good = (good + 1) % len(self.source)
        for name, x in _stack([example]).items():
            if name not in self.kept:
                self.kept[name] = np.empty((len(self.source), *x.shape[1:]), x.dtype)
            self.kept[name][place] = x[0]
        self.made[place] = True

    def _streamed(self, index: int) -> Iterator[Batch]:
        import grain

        size = self.batch_size // self.part[1]
        some = max(n for n in range(1, 9) if size % n == 0)  # Grain's own work an item costs as much as a crop

        def examples(item: int) -> Batch:
            batch, row = divmod(item * some, size)
            at = (index + batch) * self.batch_size + self.part[0] * size + row + np.arange(some)
            places = order(at, len(self.source), self.seed)
            drawn = zip(places, at, strict=True)
            return _stack([self.source.drawn(int(place), random.Random(self.seed << 64 | int(a))) for place, a in drawn])

        threads = min(16, os.cpu_count() or 1)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2 * threads, 2 * size // some))
        items = grain.MapDataset.range(2**61).map(examples).to_iter_dataset(options)
        yield from items.batch(size // some, batch_fn=_joined)


def once(source: Source, batch_size: int, part: tuple[int, int] = (0, 1), stream: bool = False) -> Iterator[Batch]:
    """Every example exactly once, in order; the last batch is padded with copies of the first example, masked out.

    So is a bad image that is skipped. With `stream` threads read up to two batches ahead.
    """
    size = batch_size // part[1]
    starts = range(part[0] * size, len(source) + part[0] * size, batch_size)
    places = (start + row for start in starts for row in range(size))
    clipped = (i if i < len(source) else 0 for i in places)
    examples = read_ahead(source.__getitem__, clipped, 2 * size) if stream else map(source.__getitem__, clipped)
    for start in starts:
        batch = _stack([next(examples) for _ in range(size)])
        yield {**batch, "mask": batch["mask"] & (start + np.arange(size) < len(source))}


def read_ahead(read: Callable[[Any], T], items: Iterable[Any], most: int) -> Iterator[T]:
    """What `read` gives for each item, in order, by threads that are at most `most` ahead."""
    pool, pending = ThreadPoolExecutor(), deque()
    try:
        for item in items:
            pending.append(pool.submit(read, item))
            if len(pending) > most:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _joined(batches: Sequence[Batch]) -> Batch:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _stack(examples: Sequence[dict[str, np.ndarray]]) -> Batch:
    names = [name for name in examples[0] if name != "bad"]
    batch = {name: np.stack([e[name] for e in examples]) for name in names}
    return {**batch, "mask": np.array([not e.get("bad", False) for e in examples])}
