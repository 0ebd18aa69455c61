"""The reader of masks: PNG files of ids or of colours, strictly, with the checks and limits of `vit.data.decode`.

Images are made for the eye, masks are numbers: no palette is applied, nothing is scaled, nothing is laid on white.
"""

import contextlib
import io
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from PIL import PngImagePlugin

from vit.data.crop import opencv
from vit.data.decode import LARGE, MOST_PIXELS, PNG, BadImage, contents, header

IDS = 2**16  # a mask's ids lie below
NO_ID = 0xFFFF  # where pixels have no id at all; void
BAND = 4_000_000  # pixels whose colours are looked up at a time
AS_PNG = "save masks as PNG files of ids, or of colours with a palette.txt"

_large = threading.Lock()


class BadMask(BadImage):
    """A mask that can't be used: `fix` says what to do about such."""

    def __init__(self, what: str, fix: str = "mend or remove it"):
        super().__init__(what)
        self.fix = fix


def mask_size(source: Path | bytes) -> tuple[int, int]:
    """Height and width as the first 33 bytes say. Raises `BadImage` if they aren't a PNG's."""
    if isinstance(source, bytes):
        head = source[:33]
    else:
        try:
            if source.exists() and not source.is_file():  # a pipe would make us wait
                raise BadMask("the mask is not a file")
            with source.open("rb") as file:
                head = file.read(33)
        except OSError as error:
            raise BadMask(f"it can't be read: {error.strerror}") from error
    if not head:
        raise BadMask("the mask is empty")
    if head.startswith(b"\xff\xd8"):
        raise BadMask("the mask is a JPEG, which doesn't keep ids as they are", AS_PNG)
    if not head.startswith(PNG):
        raise BadMask("the mask is not a PNG", AS_PNG)
    if len(head) < 33 or head[12:16] != b"IHDR":
        raise BadMask("the mask's PNG header is cut off or damaged")
    width, height = struct.unpack_from(">II", head, 16)
    if not 0 < width * height <= MOST_PIXELS:
        raise BadMask(f"the mask announces {width} x {height} pixels, the limits are 1 and {MOST_PIXELS // 10**6} million")
    return height, width


def read_mask(source: Path | bytes) -> np.ndarray:
    """What a mask's file holds: ids (H, W) of uint8 or uint16, or colours (H, W, 3). Raises `BadImage` if it isn't whole."""
    data = source if isinstance(source, bytes) else contents(source)
    mask_size(data)
    try:
        found = header(data)  # which checks every chunk
    except BadImage as error:
        raise BadMask(f"the mask is no good: {error}") from error
    with _large if found.height * found.width > LARGE else contextlib.nullcontext():
        return _pixels(data)


def _pixels(data: bytes) -> np.ndarray:
    """The values of a PNG whose chunks are good."""
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    kept, at = [PNG], len(PNG)
    while at < len(data):
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):  # transparency is no part of an id
            kept.append(data[at:end])
        if kind == b"IEND":
            break
        at = end
    try:
        image = PngImagePlugin.PngImageFile(io.BytesIO(b"".join(kept)))
        image.load()
        pixels = np.asarray(image)
    except MemoryError:
        raise
    except Exception as error:  # on bytes gone wrong Pillow raises almost anything
        raise BadMask(f"the mask's pixels are cut off or damaged ({str(error) or type(error).__name__:.80})") from error
    if interlaced:
        try:
            header(data).load()  # which sees to missing rows
        except BadImage as error:
            raise BadMask(f"the mask is no good: {error}") from error
    elif not pixels[-1].any():  # Pillow leaves rows that the file lacks at zero
        channels = {2: 3, 4: 2, 6: 4}.get(colour, 1)
        _need_bytes([part[8:-4] for part in kept if part[4:8] == b"IDAT"], height * (1 + -(-width * bits * channels // 8)))
    if colour == 0 and bits in (2, 4):  # of which Pillow makes 0 to 255
        pixels = pixels // (255 // (2**bits - 1))
    if bits == 16 and colour != 0:
        raise BadMask("the mask is a PNG of 16 bits a colour", "save it with 8 bits a colour, or as ids")
    if colour == 4:
        return pixels[..., 0]
    if pixels.ndim == 3:
        return pixels[..., :3]
    return pixels.astype(np.uint16) if bits == 16 else pixels.astype(np.uint8, copy=False)


def _need_bytes(packed: list[bytes], missing: int) -> None:
    """Raises `BadImage` if these parts of a PNG's pixels unpack to fewer bytes."""
    unpacking = zlib.decompressobj()
    try:
        for part in packed:
            for at in range(0, len(part), 2**14):
                missing -= len(unpacking.decompress(part[at : at + 2**14]))
    except zlib.error as error:
        raise BadMask(f"the mask's pixels are cut off or damaged ({error})") from error
    if missing > 0:
        raise BadMask("the mask's last rows of pixels are missing")


class Colours:
    """The ids of colours: `ids[n]` is that of the colour `colours[n]`, red, green and blue in 24 bits."""

    def __init__(self, colours: dict[int, int]):
        self.ids = np.full(2**24, NO_ID, np.uint16)
        for colour, number in colours.items():
            self.ids[colour] = number
        # A palette of greys tells the levels of grey masks, as 0 and 255, apart from ids.
        self.levels = colours if all(c >> 16 == c >> 8 & 255 == c & 255 for c in colours) else {}
        self.grey = np.full(256, NO_ID, np.uint16)
        for colour, number in self.levels.items():
            self.grey[colour & 255] = number

    def of(self, pixels: UInt8[np.ndarray, "H W 3"]) -> Int[np.ndarray, "H W"]:
        """The id of each pixel. Raises `BadImage` at a colour that has none."""
        height, width = pixels.shape[:2]
        ids = np.empty((height, width), np.uint16)
        for top in range(0, height, step := max(1, BAND // width)):
            rows = pixels[top : top + step].astype(np.int32)
            ids[top : top + step] = self.ids[rows[..., 0] << 16 | rows[..., 1] << 8 | rows[..., 2]]
        if (at := _first(ids == NO_ID)) is not None:
            colour = " ".join(map(str, pixels[at]))
            raise BadMask(f"the mask has the colour {colour} at {_place(at)}, and the palette has not", "add it to the palette")
        return ids


def ids_of(pixels: np.ndarray, colours: Colours | None) -> Int[np.ndarray, "H W"]:
    """The ids of what `read_mask` gave, by the set's palette if there is one."""
    if pixels.ndim == 2:
        if colours is None or not colours.levels or pixels.dtype != np.uint8:
            return pixels
        ids = colours.grey[pixels]
        if (at := _first(ids == NO_ID)) is not None:
            if pixels.max() < len(colours.levels):
                return pixels  # ids after all
            what = f"the mask has the grey level {pixels[at]} at {_place(at)}, and the palette has not"
            raise BadMask(what, "add it to the palette")
        return ids
    if colours is not None:
        return colours.of(pixels)
    if (pixels == pixels[..., :1]).all():  # ids, three times
        return pixels[..., 0]
    at = _first((pixels != pixels[..., :1]).any(axis=-1))
    colour = " ".join(map(str, pixels[at]))
    raise BadMask(
        f"the mask has colours, as {colour} at {_place(at)}, and there is no palette file",
        "put a palette.txt with lines R G B name beside the masks",
    )


def _first(where: Shaped[np.ndarray, "H W"]) -> tuple[int, int] | None:
    """Row and column of the first pixel that is so."""
    if not where.any():
        return None
    y, x = divmod(int(where.argmax()), where.shape[1])
    return y, x


def _place(at: tuple[int, int] | None) -> str:
    return f"x {at[1]}, y {at[0]}" if at else "no place"


class Table:
    """From ids to classes: the ids that have a name, in their order, are classes 0 and on; those of `void` become 255."""

    def __init__(self, names: dict[int, str], void: set[int], fix: str):
        self.void = void - {255}
        classes = [number for number in sorted(names) if number not in void]
        self.class_names, self.ids, self.fix = [names[number] for number in classes], classes, fix
        self.classes, self.bad = np.full(IDS, 255, np.uint8), np.ones(IDS, bool)
        self.classes[classes[:255]] = np.arange(len(classes[:255]))
        self.bad[[*classes, *void, NO_ID]] = False

    def of(self, ids: Int[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
        """Classes, and 255. Raises `BadImage` at an id that is neither class nor void."""
        small = ids.dtype == np.uint8
        bad = opencv().LUT(ids, self.bad[:256].view(np.uint8)) if small else self.bad[ids]  # ten times sooner than by numpy
        if (at := _first(bad)) is not None:
            known = f"{self.ids[0]} to {self.ids[-1]}" if len(self.ids) > 1 else str(self.ids[0])
            what = f"the mask has the id {ids[at]} at {_place(at)}; the {len(self.ids)} classes have {known}"
            raise BadMask(what, self.fix.replace("{}", str(ids[at])))
        return opencv().LUT(ids, self.classes[:256]) if small else self.classes[ids]
