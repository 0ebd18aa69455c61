"""The one image decoder: of training, evaluation, prediction and export alike.

A file is what its first bytes say, whatever it is called: JPEG, PNG, WebP, BMP, or GIF (its first frame). JPEGs go to
libjpeg-turbo, strictly: what it would only warn of refuses the image. The rest goes to Pillow (docs/decisions/0008).
"""

import errno
import io
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

MOST_PIXELS = 100_000_000
MOST_SIDE = 1_000_000  # on longer rows Pillow reports that memory ran out
MOST_BYTES = 8 * MOST_PIXELS  # 16 bits of red, green, blue and alpha, uncompressed
OF_THE_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM}

Pixels = UInt8[np.ndarray, "H W 3"]


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
    return np.ascontiguousarray(upright(found.load(), found.orientation))


def header(source: Path | bytes) -> Header:
    """What an image says of itself; that its pixels are good, only decoding shows. Raises `BadImage`."""
    data = source if isinstance(source, bytes) else contents(source)
    if not data:
        raise BadImage("it is empty")
    if not begins_an_image(data):
        raise BadImage("it is not a JPEG, PNG, WebP, BMP or GIF")
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
    try:
        # Half the time of path.read_bytes(), of which a small image notices. Opening a pipe doesn't wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
                raise BadImage("it is not a file")
            if status.st_size <= MOST_BYTES:
                left, parts = status.st_size, []
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
    raise BadImage(f"it has more than {MOST_BYTES // 10**6} MB")


# ---- JPEG ----


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The segments of a JPEG before its pixels: marker, where it begins, where it ends."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise BadImage("its JPEG header is damaged")
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # these hold nothing
            at += 2
            continue
        if marker in (0xD9, 0xDA):  # end of the image, start of the pixels
            return
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        yield marker, at, end
        at = max(end, at + 4)


def _jpeg(data: bytes) -> Header:
    frame, orientation, adobe, least = b"", 0, False, 0
    for marker, start, end in _segments(data):
        content = data[start + 4 : end]
        if marker == 0xE1 and content.startswith(b"Exif\0\0"):
            orientation = orientation or exif_orientation(content[6:])
        elif marker == 0xEE and content.startswith(b"Adobe"):
            adobe = True
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # the others are tables
            frame = content
            # Each of 8x8 pixels takes a bit at least, but where arithmetic coding packs them tighter.
            least = 1 if marker <= 0xC2 else 0
            break
    if len(frame) < 6:
        raise BadImage("its JPEG header is cut off or damaged")
    bits, height, width, channels = struct.unpack_from(">BHHB", frame)
    if bits != 8:
        raise BadImage(f"it is a JPEG of {bits} bits a channel, only 8 are read")
    if (
        len(data) < least * height * width // 512 <= MOST_PIXELS // 512
    ):  # else libjpeg would spend seconds on filling in what isn't there
        raise BadImage(f"it is cut off: {len(data):,} bytes can't hold {width} x {height} pixels")

    def load() -> Pixels:
        try:
            if channels == 4:  # Adobe's are stored inverted
                inks = simplejpeg.decode_jpeg(data, "CMYK")
                stored = "CMYK;I" if adobe else "CMYK"
                picture = Image.frombuffer("CMYK", (width, height), inks, "raw", stored, 0, 1)
                return np.asarray(picture.convert("RGB"))
            return simplejpeg.decode_jpeg(data)
        except ValueError as error:
            if "subsampling" not in str(error):
                raise BadImage(f"its JPEG pixels are cut off or damaged ({_reason(error)})") from error
        return _by_pillow("JPEG", JpegImageFile, _without_exif(data)).load()  # a subsampling that TurboJPEG doesn't know

    return Header("JPEG", height, width, orientation or 1, load)


def _without_exif(data: bytes) -> bytes:
    """A JPEG for Pillow, which warns of damaged EXIF."""
    for _, start, end in reversed([segment for segment in _segments(data) if segment[0] == 0xE1]):
        data = data[:start] + data[end:]
    return data


def exif_orientation(exif: bytes) -> int:
    """1 to 8; 1, as it is, where the EXIF block is damaged or doesn't say."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 8:
        return 1
    (at,) = struct.unpack_from(order + "I", exif, 4)
    if at + 2 > len(exif):
        return 1
    (count,) = struct.unpack_from(order + "H", exif, at)
    for entry in range(at + 2, min(at + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind = struct.unpack_from(order + "HH", exif, entry)
        if tag == 0x0112:
            size, (length,) = {1: "B", 3: "H", 4: "I"}.get(kind), struct.unpack_from(order + "I", exif, entry + 4)
            if size is None or length != 1:
                return 1
            (value,) = struct.unpack_from(order + size, exif, entry + 8)
            return value if 1 <= value <= 8 else 1
    return 1


# ---- the others ----

PNG = b"\x89PNG\r\n\x1a\n"


def _png(data: bytes) -> Header:
    """Every chunk that makes pixels is checked; the others, damaged or not, don't reach Pillow."""
    parts, exif, at, kind = [PNG], b"", len(PNG), b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise BadImage("it is cut off")
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 12 + length
        if end > len(data):
            raise BadImage("it is cut off")
        if kind == b"eXIf":
            exif = data[at + 8 : end - 4]
        elif kind == b"tRNS" or not kind[0] & 32:  # a capital letter: needed for the pixels
            if kind not in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
                raise BadImage(f"it has a PNG chunk of an unknown kind, {kind.decode('latin-1')!a}")
            if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
                raise BadImage(f"its PNG chunk {kind.decode()} doesn't match its checksum")
            parts.append(data[at:end])
        at = end
    found = _by_pillow("PNG", PngImageFile, b"".join(parts), exif_orientation(exif))

    def load() -> Pixels:
        pixels = found.load()
        # Pillow leaves rows that the file lacks as they were made. A last row of many colours isn't one of these.
        if (pixels[-1] == pixels[-1, 0]).all() and not _has_every_row(parts):
            raise BadImage("its last rows of pixels are missing")
        return pixels

    return found._replace(load=load)


def _has_every_row(parts: list[bytes]) -> bool:
    """Whether a PNG's chunks hold as many bytes, uncompressed, as its header announces."""
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", parts[1], 8)
    bits *= {2: 3, 4: 2, 6: 4}.get(colour, 1)
    adam7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    missing = 0
    for y, x, down, right in adam7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // right), -(-(height - y) // down)
        missing += rows * (1 + -(-columns * bits // 8)) if columns > 0 < rows else 0
    unpacking = zlib.decompressobj()
    for part in (part[8:-4] for part in parts[1:] if part[4:8] == b"IDAT"):
        while part and missing > 0 and not unpacking.eof:
            missing -= len(unpacking.decompress(part, 2**20))
            part = unpacking.unconsumed_tail
    while missing > 0 and not unpacking.eof and (more := unpacking.decompress(b"", 2**20)):
        missing -= len(more)
    return missing <= 0


def _webp(data: bytes) -> Header:
    return _by_pillow("WebP", WebPImageFile, data)


def _bmp(data: bytes) -> Header:
    return _by_pillow("BMP", BmpImageFile, data)


def _gif(data: bytes) -> Header:
    return _by_pillow("GIF", GifImageFile, data)


def _by_pillow(kind: str, reader: Callable[[io.BytesIO], ImageFile], data: bytes, orientation: int = 1) -> Header:
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
        try:
            image.load()
            return np.asarray(_flattened(image))
        except MemoryError:
            raise
        except Exception as error:
            raise BadImage(f"its {kind} pixels are cut off or damaged ({_reason(error)})") from error

    return Header(kind, image.height, image.width, orientation, load)


def _reason(error: Exception) -> str:
    return f"{str(error) or type(error).__name__:.80}"


def _flattened(image: Image.Image) -> Image.Image:
    """8 bits, red, green and blue, on white."""
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip
        deep = np.asarray(image).astype(np.uint16)
        grey = (deep >> 8).astype(np.uint8)  # as Pillow does with 16 bits of colour
        if isinstance(clear, int):
            grey[deep == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if clear is None and image.mode in ("1", "L", "P", "RGB"):
        return image.convert("RGB")
    see_through = image.convert("RGBA")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(see_through, mask=see_through)
    return white


OPENERS: dict[bytes, Callable[[bytes], Header]] = {
    b"\xff\xd8": _jpeg,
    PNG: _png,
    b"RIFF": _webp,
    b"BM": _bmp,
    b"GIF87a": _gif,
    b"GIF89a": _gif,
}
