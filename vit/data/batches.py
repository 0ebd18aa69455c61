"""(seed, batch index) → a batch. Nothing else decides it, so a resumed run sees what it would have seen.

A batch is a dict of arrays: `image` uint8 (B, H, W, C), `label` int32 (B,), `id` int32 (B,), `mask` bool (B,), which is
False on padding. In a run of several processes each makes its own part, and the parts in order are the batch.
"""

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from vit.data.sources import Source

Batch = dict[str, np.ndarray]


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
      stream: read through Grain's threads as the batches are needed; else the split is held in memory.
    """

    def __init__(self, source: Source, seed: int, batch_size: int, part: tuple[int, int] = (0, 1), stream: bool = False):
        self.source, self.seed, self.batch_size, self.part = source, seed, batch_size, part
        self.resident = None if stream else _stack([source[i] for i in range(len(source))])

    def places(self, index: int) -> np.ndarray:
        """Places in the source of this process's part of batch `index`."""
        size = self.batch_size // self.part[1]
        start = index * self.batch_size + self.part[0] * size
        return order(start + np.arange(size), len(self.source), self.seed)

    def starting_at(self, index: int) -> Iterator[Batch]:
        """Batches `index`, `index` + 1, … without end."""
        if self.resident is None:
            yield from self._streamed(index)
            return
        while True:
            places = self.places(index)
            yield {name: x[places] for name, x in self.resident.items()}
            index += 1

    def _streamed(self, index: int) -> Iterator[Batch]:
        import grain

        size = self.batch_size // self.part[1]

        def example(position: int) -> dict[str, np.ndarray]:
            batch, row = divmod(position, size)
            at = (index + batch) * self.batch_size + self.part[0] * size + row
            place = int(order(np.array([at]), len(self.source), self.seed)[0])
            return self.source.drawn(place, np.random.default_rng((self.seed, at)))

        examples = grain.MapDataset.range(2**62).map(example)
        yield from examples.to_iter_dataset().batch(size, batch_fn=_stack)


def once(source: Source, batch_size: int, part: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
    """Every example exactly once, in order; the last batch is padded with copies of the first example, masked out."""
    size = batch_size // part[1]
    for start in range(0, len(source), batch_size):
        places = start + part[0] * size + np.arange(size)
        inside = places < len(source)
        batch = _stack([source[int(i)] for i in np.where(inside, places, 0)])
        yield {**batch, "mask": inside}


def _stack(examples: Sequence[dict[str, np.ndarray]]) -> Batch:
    batch = {name: np.stack([e[name] for e in examples]) for name in ("image", "label", "id")}
    return {**batch, "mask": np.ones(len(examples), bool)}
