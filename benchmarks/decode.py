"""What reading images costs: the bare decoder, ours, and the whole way from files to training batches, per core.

    uv run benchmarks/decode.py                       # made-up photographs of four sizes
    uv run benchmarks/decode.py --dir DIR --size 224  # your own JPEGs

Prints JSON. `images_per_core_s` are images by second of processor time (of all threads), so other work on the machine counts
less; the ratios are to simplejpeg on the same files in the same run. `stream` decodes, crops and resizes at random, and stacks.
"""

import argparse
import io
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from vit.config import FolderData
from vit.data.batches import Batches
from vit.data.decode import decode
from vit.data.images import Images

SIZES = [(213, 160), (500, 375), (1024, 768), (4032, 3024)]
ROUNDS = 3


def photographs(folder: Path, width: int, height: int, count: int) -> None:
    """JPEGs about as detailed as photographs: noise of all scales."""
    rng = np.random.default_rng(0)
    for i in range(count):
        image = np.zeros((height, width, 3))
        for octave in range(2, 9):
            small = rng.normal(size=(max(1, height * 2**octave // 512), max(1, width * 2**octave // 512), 3))
            coarse = [Image.fromarray(small[..., c].astype(np.float32)).resize((width, height), 3) for c in range(3)]
            image += np.stack(coarse, -1) * 60 / 2 ** (0.7 * (octave - 2))
        path = folder / "train" / f"class {i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        out = io.BytesIO()
        Image.fromarray(np.clip(128 + image, 0, 255).astype(np.uint8)).save(out, "jpeg", quality=90)
        path.write_bytes(out.getvalue())
        if i < 4:
            other = folder / "val" / f"class {i % 2}" / f"{i}.jpg"
            other.parent.mkdir(parents=True, exist_ok=True)
            other.write_bytes(out.getvalue())


def per_second(work: Callable[[], None], images: int) -> float:
    """Images a second of processor time, the best of some rounds."""
    best = np.inf
    for _ in range(ROUNDS):
        begin = time.process_time()
        work()
        best = min(best, time.process_time() - begin)
    return images / best


def measure(folder: Path, size: int, most: int) -> dict:
    """The figures of a folder's JPEGs."""
    data = FolderData(str(folder), size=size)
    source = Images(data, "train")
    paths = [path for i in source.ids if isinstance(path := source.listing.read(int(i)), Path)][:most]
    contents = [path.read_bytes() for path in paths]
    whole = decode(paths[0])
    bare = per_second(lambda: [simplejpeg.decode_jpeg(x) for x in contents] and None, len(paths))
    pillow = per_second(lambda: [np.asarray(Image.open(io.BytesIO(x)).convert("RGB")) for x in contents] and None, len(paths))
    ours = per_second(lambda: [decode(path) for path in paths] and None, len(paths))

    batches = Batches(source, 0, batch_size := 32, stream=True).starting_at(0)
    count = max(4, len(paths) // batch_size)
    next(batches)
    begin, waited = time.process_time(), time.perf_counter()
    list(itertools.islice(batches, count))
    stream, wall = count * batch_size / (time.process_time() - begin), count * batch_size / (time.perf_counter() - waited)
    rates = {"simplejpeg": bare, "pillow": pillow, "decode": ours, "stream": stream}
    return {
        "first_image": list(whole.shape[:2]),
        "crops": size,
        "images_per_core_s": {name: round(rate, 1) for name, rate in rates.items()},
        "stream_images_per_s_all_cores": round(wall, 1),
        "decode_ratio": round(ours / bare, 3),
        "stream_ratio": round(stream / bare, 3),
    }


def main() -> None:
    """Measure and print."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--dir", help="a folder that vit reads, with JPEGs")
    flags.add_argument("--size", type=int, default=224)
    wanted = flags.parse_args()
    if wanted.dir:
        print(json.dumps(measure(Path(wanted.dir), wanted.size, 1000), indent=1))
        return
    for width, height in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            photographs(Path(folder), width, height, count := 64 if width < 2000 else 8)
            print(json.dumps(measure(Path(folder), wanted.size, count)), flush=True)


if __name__ == "__main__":
    main()
