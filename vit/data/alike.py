"""Images that are nearly the same: one of them saved again, in another format, quality or size. Linear in their number.

Found by what is left of each at 16x16 grey pixels, which 100,000 images hold in 26 MB. Two are called near duplicates if these
agree within noise. Candidates for that share one of seven parts of a difference hash (the signs of 112 differences between
neighbours), so that few pairs are looked at. How well it works: docs/decisions/0012.
"""

import numpy as np
from jaxtyping import Bool, Int, UInt8, UInt16
from PIL import Image

SIDE = 16
BITS = 20  # of 112 may differ
LEVELS = 6.0  # of 255, on average over the 16x16 pixels
CORRELATION = 0.98
NEIGHBOURS = 64  # those that share a part of the hash and are nearest in it; more of them are not compared with an image
SAMPLED = 512  # pixels of the shorter side are enough for 16


def thumbnail(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "16 16"]:
    """An image at 16x16 grey pixels, each the mean of its part."""
    step = max(1, min(image.shape[:2]) // SAMPLED)
    grey = Image.fromarray(np.ascontiguousarray(image[::step, ::step])).convert("L")
    return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX))


def hashes(thumbnails: UInt8[np.ndarray, "B 16 16"]) -> UInt16[np.ndarray, "B 7"]:
    """Difference hashes: whether the next of 8x8 means is brighter, to the right and below; seven parts of 16 bits."""
    B, half = len(thumbnails), SIDE // 2
    means = thumbnails.reshape(B, half, 2, half, 2).sum(axis=(2, 4), dtype=np.int32)
    right, below = means[:, :, 1:] > means[:, :, :-1], means[:, 1:] > means[:, :-1]
    bits = np.concatenate([x.reshape(B, half * (half - 1)) for x in (right, below)], axis=1)
    return np.packbits(bits, axis=1).view(np.uint16)


def near(thumbnails: UInt8[np.ndarray, "B 16 16"], groups: Int[np.ndarray, "B"]) -> dict[int, int]:
    """Images that have a near duplicate in a group of lower number (the splits are numbered), each with one such."""
    codes, found = hashes(thumbnails), {}
    means = thumbnails.mean(axis=(1, 2), dtype=np.float32)
    open_ = np.ones(len(codes), bool)  # without a partner as yet
    for part in range(codes.shape[1]):
        # Sorted by this part first: those that share it stand together, the likest ones side by side.
        order = np.lexsort(np.roll(codes, -part, axis=1).T[::-1])
        key = codes[order, part]
        for distance in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
            same = np.flatnonzero(key[distance:] == key[:-distance])
            if not len(same):
                break
            a, b = order[same], order[same + distance]
            low, high = np.where(groups[a] < groups[b], (a, b), (b, a))
            # From the cheapest test to the dearest; means can't be further apart than the pixels are on average.
            asked = (groups[a] != groups[b]) & open_[high] & (np.abs(means[a] - means[b]) <= LEVELS)
            low, high = low[asked], high[asked]
            close = np.bitwise_count(codes[low] ^ codes[high]).sum(axis=1) <= BITS
            low, high = low[close], high[close]
            agree = _agree(thumbnails[low], thumbnails[high])
            found |= zip(high[agree].tolist(), low[agree].tolist(), strict=True)
            open_[high[agree]] = False
    return found


def _agree(a: UInt8[np.ndarray, "M 16 16"], b: UInt8[np.ndarray, "M 16 16"]) -> Bool[np.ndarray, "M"]:
    """Whether two small pictures are the same but for noise: in brightness, and in what varies over each."""
    a, b = (x.reshape(len(x), SIDE * SIDE).astype(np.float32) for x in (a, b))
    off = np.abs(a - b).mean(axis=1)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    both = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    # Below a grey level's worth of variation there is nothing that could correlate.
    return (off <= LEVELS) & (((a * b).sum(axis=1) >= CORRELATION * both) | (both < SIDE * SIDE))
