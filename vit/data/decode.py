"""The one image decoder: of training, evaluation, prediction and export alike.

A file is what its first bytes say, whatever it is called: JPEG, PNG, WebP, BMP, or GIF (its first frame). JPEGs go to
libjpeg-turbo, strictly: what it would only warn of refuses the image. The rest goes to Pillow (docs/decisions/0008).
"""

import contextlib
import errno
import io
import os
import re
import stat
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

MOST_PIXELS = 100_000_000
MOST_SIDE = 1_000_000  # on longer rows Pillow reports that memory ran out
LARGE = 16_000_000  # pixels; one image of more is decoded at a time, as each may take a gigabyte
BAND = 4_000_000  # pixels that are converted at a time
MOST_SCANNED = 4_000_000_000  # pixels, over all scans of a JPEG: 40 scans of a hundred megapixels, which usually has ten
MOST_SEGMENTS, MOST_CHUNKS = 5_000, 100_000  # of a JPEG; of a PNG, where Pillow takes 10 µs for each
MOST_BLOCKS = 1_000_000  # of a GIF, before its first frame
PNG = b"\x89PNG\r\n\x1a\n"
OF_THE_FILE = {errno.ENXIO, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
OF_THE_FILE |= {errno.EACCES, errno.EPERM}

Pixels = UInt8[np.ndarray, "H W 3"]
_large = threading.Lock()


class BadImage(ValueError):
    """An image that can't be used; its text says why in a few words."""


class Header(NamedTuple):
    """What stands before the pixels. `height` and `width` are as stored; `orientation` is EXIF's, 1 to 8."""

    kind: str
    height: int
    width: int
    orientation: int
    load: Callable[[], Pixels]


def decode(source: Path | bytes) -> Pixels:
    """The pixels of an image file, or of its bytes: all of them, upright.

    EXIF's orientation is applied, what is transparent is laid on white, grey levels are repeated three times, 16 bits are
    scaled to 8, colour profiles are left alone. Raises `BadImage` if the image isn't whole, or too large.
    """
    found = header(source)
    with _large if found.height * found.width > LARGE else contextlib.nullcontext():
        return np.ascontiguousarray(upright(found.load(), found.orientation))


def header(source: Path | bytes) -> Header:
    """What an image says of itself; that its pixels are good, only decoding shows. Raises `BadImage`."""
    data = source if isinstance(source, bytes) else contents(source)
    if not data:
        raise BadImage("it is empty")
    _worth_reading(data[:33], len(data))
    found = next(opener for magic, opener in OPENERS.items() if data.startswith(magic))(data)
    if not found.height or not found.width:
        raise BadImage("it has no pixels")
    if found.height * found.width > MOST_PIXELS:
        raise BadImage(f"it announces {found.width} x {found.height} pixels, over {MOST_PIXELS // 10**6} million")
    if max(found.height, found.width) > MOST_SIDE:
        raise BadImage(f"it announces {found.width} x {found.height} pixels, over a million on a side")
    return found


def begins_an_image(head: bytes) -> bool:
    """Whether these first 12 bytes, or more, are those of a format that is read."""
    return head.startswith(tuple(OPENERS)) and not (head.startswith(b"RIFF") and head[8:12] != b"WEBP")


def upright(image: UInt8[np.ndarray, "H W C"], orientation: int) -> UInt8[np.ndarray, "H2 W2 C"]:
    """A view of the image as EXIF's orientation wants it seen."""
    if orientation >= 5:  # rows and columns change places
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image


def contents(path: Path) -> bytes:
    """A file's bytes. Raises `BadImage` if it isn't there, isn't a file, or has more than an image could."""
    if "\0" in str(path):
        raise BadImage("its path holds a zero byte")
    try:
        # Half the time of path.read_bytes(), of which a small image notices. Opening a pipe doesn't wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
                raise BadImage("it is not a file")
            left, parts = status.st_size, []
            if left > 2**20:  # whatever isn't an image shall not fill the memory
                _worth_reading(os.read(descriptor, 33), left)
                os.lseek(descriptor, 0, os.SEEK_SET)
            while left and (part := os.read(descriptor, left)):
                left -= len(part)
                parts.append(part)
            return b"".join(parts)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in OF_THE_FILE:
            raise  # the disk or the network failed, not this file
        raise BadImage(f"it can't be read: {error.strerror}") from error


def _worth_reading(head: bytes, size: int) -> None:
    """Raises `BadImage` if a file of so many bytes that begins like this is no image, or larger than its pixels are."""
    if not begins_an_image(head):
        raise BadImage("it is not a JPEG, PNG, WebP, BMP or GIF")
    told = head.startswith(PNG + b"\0\0\0\rIHDR") and len(head) >= 29
    most = min(_unpacked(head), 8 * MOST_PIXELS) if told else 4 * MOST_PIXELS  # only a PNG can have 16 bits a colour
    if size > most + most // 4 + 2**26:  # there may be more than pixels
        raise BadImage(f"it has {size // 10**6} MB, far more than its pixels need")


# ---- JPEG ----

MARK = re.compile(rb"\xff+[^\xff]")
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # as can't stand amid a scan


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The segments of a JPEG before its pixels: marker, where it begins, where it ends."""
    at = 2
    for _ in range(MOST_SEGMENTS):
        mark = MARK.match(data, at)
        if mark is None:
            break
        at, marker = mark.end(), data[mark.end() - 1]
        if marker in (0xD9, 0xDA) or at + 2 > len(data):  # end of the image, start of the pixels
            return
        if marker != 0x01 and not 0xD0 <= marker <= 0xD8:  # these hold nothing
            end = at + struct.unpack_from(">H", data, at)[0]
            yield marker, at - 2, end
            at = max(end, at + 2)
    raise BadImage("its JPEG header is damaged")


def _too_many_scans(data: bytes, at: int, most: float) -> bool:
    """Whether a JPEG has more scans from there to its end marker: those of pictures and films behind it don't count."""
    scans = data.count(b"\xff\xda", at) if len(data) > 10 * most else 0  # each takes ten bytes
    for _ in range(MOST_SEGMENTS if scans > most else 0):
        marker = MARKER.search(data, at)
        if marker is None or marker[0] == b"\xff\xd9" or marker.end() + 2 > len(data) or most < 0:
            return most < 0
        most -= marker[0] == b"\xff\xda"
        at = marker.end() + struct.unpack_from(">H", data, marker.end())[0]
    return scans > most


def _jpeg(data: bytes) -> Header:
    frame, orientation, adobe, least, end = b"", 0, False, 0, 0
    for marker, start, end in _segments(data):
        content = data[start + 4 : end]
        if marker == 0xE1 and content.startswith(b"Exif\0\0"):
            orientation = orientation or exif_orientation(content[6:])
        elif marker == 0xEE and content.startswith(b"Adobe"):
            adobe = True
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # the others are tables
            frame = content
            least = marker <= 0xC2  # bits for 8x8 pixels; arithmetic coding packs them tighter
            break
    if len(frame) < 6:
        raise BadImage("its JPEG header is cut off or damaged")
    bits, height, width, channels = struct.unpack_from(">BHHB", frame)
    if bits != 8:
        raise BadImage(f"it is a JPEG of {bits} bits a channel, only 8 are read")
    # libjpeg would spend seconds on filling in what isn't there.
    if len(data) < least * height * width // 512 <= MOST_PIXELS // 512:
        raise BadImage(f"it is cut off: {len(data):,} bytes can't hold {width} x {height} pixels")
    if LARGE < height * width <= MOST_PIXELS and data.rfind(b"\xff\xd9", end) < 0:  # libjpeg would decode it all to tell
        raise BadImage("its JPEG pixels are cut off")
    if _too_many_scans(data, end, MOST_SCANNED / min(max(height * width, 1), MOST_PIXELS)):
        raise BadImage("its JPEG pixels are in too many scans")

    def load() -> Pixels:
        try:
            if channels == 4:  # Adobe's are stored inverted
                inks = simplejpeg.decode_jpeg(data, "CMYK")
                stored = "CMYK;I" if adobe else "CMYK"
                picture = Image.frombuffer("CMYK", (width, height), inks, "raw", stored, 0, 1)
                return _in_bands(height, width, partial(_flattened, picture))
            return simplejpeg.decode_jpeg(data)
        except ValueError as error:
            if "subsampling" not in str(error):
                raise BadImage(f"its JPEG pixels are cut off or damaged ({_reason(error)})") from error
        return _by_pillow("JPEG", JpegImagePlugin.JpegImageFile, _without_exif(data)).load()  # TurboJPEG can't subsample so

    return Header("JPEG", height, width, orientation or 1, load)


def _without_exif(data: bytes) -> bytes:
    """A JPEG for Pillow, which warns of damaged EXIF."""
    edges = [at for marker, *edges in _segments(data) if marker == 0xE1 for at in edges]
    return b"".join(data[a:b] for a, b in zip([0, *edges[1::2]], [*edges[::2], len(data)], strict=True))


def exif_orientation(exif: bytes) -> int:
    """1 to 8; 1, as it is, where the EXIF block is damaged or doesn't say."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    with contextlib.suppress(struct.error):  # it is cut off
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, length = struct.unpack_from(order + "HHI", exif, entry)
            if tag == 0x0112:
                size = {1: "B", 3: "H", 4: "I"}.get(kind)
                value = struct.unpack_from(order + size, exif, entry + 8)[0] if size and length == 1 else 1
                return value if 1 <= value <= 8 else 1
    return 1


def _png(data: bytes) -> Header:
    """Every chunk that makes pixels is checked; the others, damaged or not, don't reach Pillow."""
    view, exif, at = memoryview(data), b"", len(PNG)
    parts = [view[:at]]  # not copies, which would double a large file
    for _ in range(MOST_CHUNKS):
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            raise BadImage("it is cut off")
        if kind == b"eXIf":
            exif = data[at + 8 : end - 4]
        elif kind == b"tRNS" or not kind[0] & 32:  # a capital letter: needed for the pixels
            if kind not in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
                raise BadImage(f"it has a PNG chunk of an unknown kind, {kind.decode('latin-1')!a}")
            if zlib.crc32(view[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
                raise BadImage(f"its PNG chunk {kind.decode()} doesn't match its checksum")
            if (kind == b"IHDR") != (len(parts) == 1) or (kind == b"IHDR" and end != at + 25):
                raise BadImage("its PNG header is damaged")
            parts.append(_for_pillow(view[at:end], *parts[1][16:18]) if kind == b"tRNS" else view[at:end])
        if kind == b"IEND":
            break
        at = end
    else:
        raise BadImage(f"it has more than {MOST_CHUNKS:,} PNG chunks")
    found = _by_pillow("PNG", PngImagePlugin.PngImageFile, b"".join(parts), exif_orientation(exif))

    def load() -> Pixels:
        # Pillow leaves rows that the file lacks as they were made. A last row of many colours isn't one of these, if the
        # rows come in order; and of a large image it is asked before Pillow takes the memory.
        first = found.height * found.width > LARGE or parts[1][20]
        if first:
            _need_every_row(parts)
        pixels = found.load()
        if not first and (pixels[-1] == pixels[-1, 0]).all():
            _need_every_row(parts)
        return pixels

    return found._replace(load=load)


def _for_pillow(chunk: memoryview, bits: int, colour: int) -> memoryview:
    """A PNG's tRNS chunk, its levels as Pillow looks for them: among grey of 8 bits, or the upper bytes of colours."""
    if colour == 0 and bits in (2, 4) and len(chunk) == 14:
        levels = np.frombuffer(chunk[8:-4], ">u2") % 2**bits * (255 // (2**bits - 1))
    elif colour == 2 and bits == 16 and len(chunk) == 18:
        levels = np.frombuffer(chunk[8:-4], ">u2") >> 8
    else:
        return chunk
    content = b"tRNS" + levels.astype(">u2").tobytes()
    return memoryview(bytes(chunk[:4]) + content + struct.pack(">I", zlib.crc32(content)))


def _unpacked(start: bytes) -> int:
    """How many bytes the rows of a PNG take, uncompressed, by its first 29 bytes."""
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", start, 16)
    bits *= {2: 3, 4: 2, 6: 4}.get(colour, 1)
    adam7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    total = 0
    for y, x, down, right in adam7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // right), -(-(height - y) // down)
        total += rows * (1 + -(-columns * bits // 8)) if columns > 0 < rows else 0
    return total


def _need_every_row(parts: list[memoryview]) -> None:
    """Raises `BadImage` if a PNG's chunks hold fewer bytes, uncompressed, than its header announces."""
    missing, unpacking = _unpacked(b"".join(parts[:2])), zlib.decompressobj()
    try:
        for body in (part[8:-4] for part in parts[1:] if part[4:8] == b"IDAT"):
            for at in range(0, len(body), 2**16):  # what is left of a piece is copied each time
                piece = body[at : at + 2**16]
                while piece and missing > 0 and not unpacking.eof:
                    missing -= len(unpacking.decompress(piece, 2**20))
                    piece = unpacking.unconsumed_tail
        while missing > 0 and not unpacking.eof and (more := unpacking.decompress(b"", 2**20)):
            missing -= len(more)
    except zlib.error as error:
        raise BadImage(f"its PNG pixels are cut off or damaged ({_reason(error)})") from error
    if missing > 0:
        raise BadImage("its last rows of pixels are missing")


def _gif(data: bytes) -> Header:
    """Only what concerns its first frame reaches Pillow, which spends minutes on a million comments."""
    at = 13 + (6 << (data[10] & 7) if data[10:11] >= b"\x80" else 0)  # behind the colours
    parts, left = [data[:at]], MOST_BLOCKS
    while at < len(data) and data[at] not in b",;":  # the frame, or the end
        start, is_control = at, data[at : at + 2] == b"!\xf9"
        if data[at] == 0x21:
            at += 2
            while at < len(data) and data[at] and left:
                at, left = at + 1 + data[at], left - 1
        at, left = at + 1, left - 1
        if left <= 0:
            raise BadImage("its GIF header is damaged")
        if is_control:
            parts.append(data[start:at])
    return _by_pillow("GIF", GifImagePlugin.GifImageFile, b"".join([*parts, data[at:]]))


def _by_pillow(kind: str, reader: Callable[[io.BytesIO], ImageFile.ImageFile], data: bytes, orientation: int = 1) -> Header:
    try:
        # Not Image.open, whose limit on pixels is the process's, and which warns.
        image = reader(io.BytesIO(data))
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:  # a WebP that opened tells its size only after this
        raise BadImage(f"it announces over {MOST_PIXELS // 10**6} million pixels") from error
    except Exception as error:  # on bytes gone wrong Pillow raises almost anything
        raise BadImage(f"its {kind} header is cut off or damaged ({_reason(error)})") from error
    if exif := image.info.get("exif"):
        orientation = exif_orientation(exif.removeprefix(b"Exif\0\0"))

    def load() -> Pixels:
        for decoder, _, offset, how in image.tile:  # Pillow would fill the memory before it missed something
            if decoder == "raw" and isinstance(how, tuple) and offset + how[1] * (image.height - 1) >= len(data):
                raise BadImage("it is cut off")
        try:
            image.load()
            return _in_bands(image.height, image.width, partial(_flattened, image))
        except MemoryError:
            raise
        except Exception as error:
            raise BadImage(f"its {kind} pixels are cut off or damaged ({_reason(error)})") from error

    return Header(kind, image.height, image.width, orientation, load)


def _reason(error: Exception) -> str:
    return f"{str(error) or type(error).__name__:.80}"


def _in_bands(height: int, width: int, rows: Callable[[int, int], Image.Image]) -> Pixels:
    """The array of an image whose rows are made by `rows(top, bottom)`: a large one isn't held three times over."""
    if height * width <= BAND:
        return np.asarray(rows(0, height))
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, step := max(1, BAND // width)):
        pixels[top : top + step] = np.asarray(rows(top, min(top + step, height)))
    return pixels


def _flattened(image: Image.Image, top: int, bottom: int) -> Image.Image:
    """8 bits, red, green and blue, on white, of these rows."""
    if bottom - top < image.height:
        image = image.crop((0, top, image.width, bottom))
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip
        deep = np.asarray(image).astype(np.uint16)
        grey = (deep >> 8).astype(np.uint8)  # as Pillow does with 16 bits of colour
        if isinstance(clear, int):
            grey[deep == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if clear is None and image.mode in ("1", "L", "P", "RGB", "CMYK"):
        return image.convert("RGB")
    see_through = image.convert("RGBA")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(see_through, mask=see_through)
    return white


OPENERS: dict[bytes, Callable[[bytes], Header]] = {
    b"\xff\xd8": _jpeg,
    PNG: _png,
    b"RIFF": partial(_by_pillow, "WebP", WebPImagePlugin.WebPImageFile),
    b"BM": partial(_by_pillow, "BMP", BmpImagePlugin.BmpImageFile),
    b"GIF8": _gif,
}
