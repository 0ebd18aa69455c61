"""Broken, odd and hostile image files, each with what must become of it: a pure function of a seed.

`python -m tests.data.malformed FOLDER [SEED]` writes them, to be looked at or to try another program on.
"""

import io
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
H, W = 48, 64


class File(NamedTuple):
    """A file, and what must become of it."""

    family: str
    name: str
    content: bytes | None  # None: a folder of that name
    image: np.ndarray | None = None  # what it decodes to, (H, W, 3), or (H, W, 1) for grey
    off: float = 0  # by how many grey levels the decoded image may be off on average: JPEG and WebP lose some
    why: str = ""  # what the reason for refusing it must match; several words mean that each of them will do
    either: bool = False  # no checksum covers the damage: an image of that shape, or refused for that reason


def picture(seed: int, height: int = H, width: int = W) -> np.ndarray:
    """A smooth coloured picture (H, W, 3), which JPEG changes little."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(y * a + x * b + c) for a, b, c in rng.uniform(1, 6, (3, 3))]
    return np.round(np.stack(waves, -1) * 110 + 128).astype(np.uint8)


def saved(image: Any, kind: str, **options: Any) -> bytes:
    """The bytes of a picture (an array or Pillow's image) in a format."""
    out = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(out, kind, **options)
    return out.getvalue()


def chunk(kind: bytes, content: bytes, crc: int | None = None) -> bytes:
    """A chunk of a PNG file."""
    code = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", code)


def header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG's first chunk. Colour: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 2, before: bytes = b"") -> bytes:
    """A PNG of rows that have their filter byte already; `before` is chunks in front of the pixels."""
    return PNG + header(width, height, depth, colour) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def rows(pixels: np.ndarray) -> bytes:
    """Rows of a PNG from an array of bytes or big-endian words, (H, …), unfiltered."""
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def with_exif(jpeg: bytes, exif: bytes) -> bytes:
    """The JPEG with an EXIF segment of those bytes behind its first marker."""
    segment = b"Exif\0\0" + exif
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def orientation(value: int, kind: int = 3, count: int = 1, after: int = 0) -> bytes:
    """An EXIF block with nothing but an orientation; `after` is where the next directory is said to be."""
    return b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHHI", 0x112, kind, count, value, 0, after)


def announced(content: bytes, kind: str, width: int, height: int) -> bytes:
    """The file with another size in its header."""
    if kind == "jpeg":
        at = next(i for i in range(len(content)) if content[i] == 0xFF and content[i + 1] in (0xC0, 0xC2))
        return content[: at + 5] + struct.pack(">HH", height, width) + content[at + 9 :]
    if kind == "png":
        return PNG + header(width, height) + content[33:]
    if kind == "gif":
        at = content.index(b"\x2c")  # the first picture's own header comes behind the screen's
        content = content[: at + 5] + struct.pack("<HH", width, height) + content[at + 9 :]
        return content[:6] + struct.pack("<HH", width, height) + content[10:]
    return content[:18] + struct.pack("<ii", width, height) + content[26:]  # bmp


class Pictures(NamedTuple):
    """The picture that everything starts from, in each format."""

    image: np.ndarray
    jpeg: bytes
    png: bytes
    webp: bytes
    gif: bytes
    bmp: bytes


def pictures(seed: int) -> Pictures:
    """For a GIF the picture has few colours, so that every format can hold its own exactly or closely."""
    image = picture(seed)
    return Pictures(
        image,
        saved(image, "JPEG", quality=95, subsampling=0),
        saved(image, "PNG"),
        saved(image, "WEBP", lossless=True),
        saved(Image.fromarray(image & 0xC0).quantize(64, dither=Image.Dither.NONE), "GIF"),
        saved(image, "BMP"),
    )


CUT = "cut off|missing|damaged"
NOT = "is not a JPEG"
LARGE = "announces .* million"
DAMAGED = f"{CUT}|checksum|of an unknown kind"


def empty(p: Pictures) -> Iterator[File]:
    yield File("empty", "empty.jpg", b"", why="is empty")
    yield File("empty", "empty.png", b"", why="is empty")
    yield File("empty", "one_byte.jpg", b"\xff", why=NOT)
    yield File("empty", "zeros.jpg", bytes(4096), why=NOT)
    yield File("empty", "signature.png", PNG, why=f"{NOT}|{DAMAGED}")


def truncated(p: Pictures) -> Iterator[File]:
    for percent in (2, 25, 50, 90, 99):
        cut = p.jpeg[: len(p.jpeg) * percent // 100]
        yield File("truncated", f"jpeg_{percent}.jpg", cut, why=f"{DAMAGED}|{NOT}")
    yield File("truncated", "without_end.jpg", p.jpeg[:-2], p.image, 3, why=DAMAGED, either=True)
    for name, content in (("png", p.png), ("webp", p.webp), ("gif", p.gif), ("bmp", p.bmp)):
        for percent in (10, 60):
            cut = content[: len(content) * percent // 100]
            yield File("truncated", f"{name}_{percent}.{name}", cut, why=f"{DAMAGED}|{NOT}")
    yield File("truncated", "progressive.jpg", saved(p.image, "JPEG", progressive=True)[:700], why=DAMAGED)


def wrong_extension(p: Pictures) -> Iterator[File]:
    yield File("wrong extension", "png.jpg", p.png, p.image)
    yield File("wrong extension", "webp.jpg", p.webp, p.image)
    yield File("wrong extension", "bmp.png", p.bmp, p.image)
    yield File("wrong extension", "jpeg.png", p.jpeg, p.image, 3)
    yield File("wrong extension", "gif.jpeg", p.gif, p.image & 0xC0)


def flipped(p: Pictures) -> Iterator[File]:
    """The scan of a JPEG has no checksum: what the decoder notices is refused, the rest looks odd."""
    scan = p.jpeg.index(b"\xff\xda") + 14
    tables = p.jpeg.index(b"\xff\xc4") + 5
    rng = np.random.default_rng(len(p.jpeg))

    def changed(at: int, content: bytes) -> bytes:
        return p.jpeg[:at] + content + p.jpeg[at + len(content) :]

    for n in range(4):
        noisy = bytearray(p.jpeg)
        for at in rng.integers(scan, len(p.jpeg) - 2, 2 + 8 * n):
            noisy[at] ^= 1 << int(rng.integers(8))
        yield File("flipped bytes", f"scan_{n}.jpg", bytes(noisy), p.image, 255, why=DAMAGED, either=True)
    yield File("flipped bytes", "zeroed.jpg", changed(scan + 200, bytes(300)), p.image, 255, why=DAMAGED, either=True)
    yield File("flipped bytes", "end_in_the_middle.jpg", changed(scan + 300, b"\xff\xd9"), why=DAMAGED)
    yield File("flipped bytes", "marker_in_the_middle.jpg", changed(scan + 300, b"\xff\xc0"), why=DAMAGED)
    yield File("flipped bytes", "huffman.jpg", changed(tables, b"\xff" * 16), why=DAMAGED)
    yield File("flipped bytes", "marker.jpg", changed(2, b"\x00\x00"), why=f"{DAMAGED}|{NOT}")
    yield File("flipped bytes", "middle.png", p.png[:400] + bytes([p.png[400] ^ 8]) + p.png[401:], why=DAMAGED)
    yield File("flipped bytes", "webp.webp", p.webp[:200] + bytes(200) + p.webp[400:], p.image, 255, DAMAGED, True)


def bombs(p: Pictures) -> Iterator[File]:
    for kind, content, size in (
        ("png", p.png, 200_000),
        ("jpeg", p.jpeg, 65_500),
        ("gif", p.gif, 65_535),
        ("bmp", p.bmp, 60_000),
    ):
        yield File("bomb", f"bomb.{kind}", announced(content, kind, size, size), why=LARGE)
    yield File("bomb", "thin.png", announced(p.png, "png", 200_000_000, 1), why=LARGE)
    canvas = b"VP8X" + struct.pack("<II", 10, 0) + struct.pack("<I", 16_382)[:3] + struct.pack("<I", 16_382)[:3]
    content = b"WEBP" + canvas + p.webp[12:]
    yield File("bomb", "canvas.webp", b"RIFF" + struct.pack("<I", len(content)) + content, why=f"{LARGE}|{DAMAGED}|{NOT}")
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000), 9))
    yield File("bomb", "text.png", p.png[:33] + text + p.png[33:], p.image, why=f"{DAMAGED}|large", either=True)
    # Just below 100 megapixels, black, in a hundred kilobytes: what has so little in it has many pixels for its bytes.
    tiny = zlib.compress(bytes(10_000), 9)
    for width, height in ((9_900, 9_900), (99_000_000, 1)):
        body = PNG + header(width, height) + chunk(b"IDAT", tiny) + chunk(b"IEND", b"")
        yield File("bomb", f"huge_of_little_{width}.png", body, why=f"{DAMAGED}|on a side")
    yield File("bomb", "huge_of_little.jpg", announced(p.jpeg, "jpeg", 9_900, 9_900), why=DAMAGED)
    yield File("bomb", "huge_of_little.bmp", announced(p.bmp, "bmp", 9_900, 9_900), why=DAMAGED)


def animated(p: Pictures) -> Iterator[File]:
    frames = [Image.fromarray((p.image & 0xC0) ^ np.uint8(64 * n)).quantize(64, dither=Image.Dither.NONE) for n in range(3)]
    options = {"save_all": True, "append_images": frames[1:], "duration": 100}
    yield File("animated", "three.gif", saved(frames[0], "GIF", **options), p.image & 0xC0)
    coloured = [frame.convert("RGB") for frame in frames]
    options["append_images"] = coloured[1:]
    yield File("animated", "three.webp", saved(coloured[0], "WEBP", lossless=True, **options), p.image & 0xC0)
    yield File("animated", "three.png", saved(coloured[0], "PNG", **options), p.image & 0xC0)
    whole = saved(frames[0], "GIF", **{**options, "append_images": frames[1:]})
    yield File("animated", "second_frame_cut.gif", whole[: len(whole) - 200], p.image & 0xC0)
    pair = [Image.fromarray(p.image), Image.fromarray(255 - p.image)]
    several = saved(pair[0], "MPO", save_all=True, append_images=pair[1:], quality=95, subsampling=0)
    yield File("animated", "several_pictures.jpg", several, p.image, 3)


def exif(p: Pictures) -> Iterator[File]:
    good, odd = orientation(6), orientation(9)
    yield File("EXIF", "turned.jpg", with_exif(p.jpeg, good), np.rot90(p.image, -1), 3)
    yield File("EXIF", "mirrored.jpg", with_exif(p.jpeg, orientation(2)), p.image[:, ::-1], 3)
    for name, block in {
        "garbage": bytes(range(256)) * 4,
        "nothing": b"",
        "cut": good[:13],
        "of_nine": odd,
        "of_zero": orientation(0),
        "of_text": orientation(6, kind=2, count=40_000),
        "of_many": orientation(6, count=2_000_000_000),
        "in_a_circle": orientation(1, after=8),
        "of_another_order": b"XX" + good[2:],
    }.items():
        yield File("EXIF", f"{name}.jpg", with_exif(p.jpeg, block), p.image, 3)
    yield File("EXIF", "turned.png", p.png[:33] + chunk(b"eXIf", good) + p.png[33:], np.rot90(p.image, -1))
    yield File("EXIF", "garbage.png", p.png[:33] + chunk(b"eXIf", bytes(range(99))) + p.png[33:], p.image)


def colours(p: Pictures) -> Iterator[File]:
    grey = p.image[..., :1]
    three = np.repeat(grey, 3, -1)
    yield File("colours", "grey.jpg", saved(grey[..., 0], "JPEG", quality=95), three, 3)
    yield File("colours", "grey.png", saved(grey[..., 0], "PNG"), three)
    yield File(
        "colours",
        "one_bit.png",
        saved(Image.fromarray(grey[..., 0] > 127), "PNG"),
        np.where(three > 127, 255, 0).astype(np.uint8),
    )
    cmyk = Image.fromarray(np.concatenate([255 - p.image, np.zeros_like(grey)], -1), "CMYK")
    yield File("colours", "cmyk.jpg", saved(cmyk, "JPEG", quality=95, subsampling=0), p.image, 4)
    opaque = np.concatenate([p.image, np.full_like(grey, 255)], -1)
    yield File("colours", "opaque.png", saved(opaque, "PNG"), p.image)
    few = Image.fromarray(p.image & 0xC0).quantize(64, dither=Image.Dither.NONE)
    yield File("colours", "palette.png", saved(few, "PNG"), p.image & 0xC0)
    yield File("colours", "palette_alpha.png", saved(few, "PNG", transparency=bytes([255] * 64)), p.image & 0xC0)
    wide = grey.astype(np.uint16) * 257
    yield File("colours", "grey16.png", png(W, H, rows(wide.astype(">u2")), 16, 0), three)
    low = grey // 4  # dark, so that clipping would show
    yield File(
        "colours", "dark16.png", png(W, H, rows((low.astype(np.uint16) * 257).astype(">u2")), 16, 0), np.repeat(low, 3, -1)
    )
    yield File("colours", "rgb16.png", png(W, H, rows((p.image.astype(np.uint16) * 257).astype(">u2")), 16, 2), p.image)
    yield File(
        "colours",
        "index_outside.png",
        png(4, 1, b"\0\x00\x01\x02\xff", 8, 3, chunk(b"PLTE", bytes(9))),
        np.zeros((1, 4, 3), np.uint8),
        255,
        DAMAGED,
        True,
    )
    yield File(
        "colours",
        "without_palette.png",
        png(4, 1, b"\0\x00\x01\x02\xff", 8, 3),
        np.zeros((1, 4, 3), np.uint8),
        255,
        DAMAGED,
        True,
    )
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile"))
    yield File("colours", "odd_profile.png", p.png[:33] + profile + p.png[33:], p.image)
    yield File(
        "colours", "profile_garbage.png", p.png[:33] + chunk(b"iCCP", b"\xff" * 40) + p.png[33:], p.image, 0, DAMAGED, True
    )


def other_content(p: Pictures) -> Iterator[File]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(zipfile.ZipInfo("a.txt"), "a")
    for name, content in {
        "text.jpg": b"This is not an image.\n" * 20,
        "page.png": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
        "archive.jpg": archive.getvalue(),
        "document.jpg": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
        "tiff.jpg": saved(p.image, "TIFF"),
        "plain.jpg": b"P6 2 1 255\n" + bytes(6),
        "pcx.jpg": saved(p.image, "PCX"),
        "icon.png": saved(p.image[:32, :32], "ICO"),
        "film.jpg": b"\0\0\0\x18ftypmp42" + bytes(200),
        "phone.jpg": b"\0\0\0\x18ftypheic" + bytes(200),
    }.items():
        yield File("other content", name, content, why=NOT)
    yield File("other content", "folder.jpg", None, why="folder|directory")


def chunks(p: Pictures) -> Iterator[File]:
    """PNG guards every chunk by a checksum."""
    body = p.png[33:]
    at = p.png.index(b"IDAT") - 4
    pixels = p.png[at:]
    why = DAMAGED
    broken = struct.pack(">IIBBBBB", W, H, 8, 2, 0, 0, 0)
    yield File("PNG chunks", "header_crc.png", PNG + chunk(b"IHDR", broken, crc=1) + body, why=f"{why}|{NOT}")
    data = zlib.compress(rows(p.image))
    start = PNG + header(W, H)
    end = chunk(b"IEND", b"")
    yield File("PNG chunks", "pixels_crc.png", start + chunk(b"IDAT", data, crc=1) + end, why=why)
    yield File("PNG chunks", "no_pixels.png", start + end, why=why)
    yield File("PNG chunks", "no_header.png", PNG + pixels, why=f"{why}|{NOT}")
    yield File("PNG chunks", "pixels_garbage.png", start + chunk(b"IDAT", bytes(range(256))) + end, why=why)
    yield File("PNG chunks", "too_few_rows.png", png(W, H, rows(p.image[:20])), why=why)
    yield File("PNG chunks", "filter.png", png(W, H, b"\x09" + rows(p.image)[1:]), why=why)
    yield File("PNG chunks", "length.png", start + struct.pack(">I", 0x7FFFFFFF) + b"IDAT" + data, why=why)
    yield File("PNG chunks", "text_crc.png", start + chunk(b"tEXt", b"a\0b", crc=1) + body, p.image, 0, why, True)
    yield File("PNG chunks", "depth.png", PNG + header(W, H, depth=7) + body, why=f"{why}|{NOT}")
    yield File("PNG chunks", "unknown.png", start + chunk(b"abCd", b"hello") + body, p.image)
    yield File("PNG chunks", "critical.png", start + chunk(b"ABCD", b"hello") + body, p.image, 0, why, True)
    yield File("PNG chunks", "tail.png", p.png + b"tail" * 100, p.image)


def dimensions(p: Pictures) -> Iterator[File]:
    for kind, content in (("png", p.png), ("jpeg", p.jpeg), ("gif", p.gif), ("bmp", p.bmp)):
        yield File(
            "dimensions", f"no_width.{kind}", announced(content, kind, 0, H), why=f"{DAMAGED}|{NOT}|no pixels|empty|size"
        )
    yield File("dimensions", "no_height.jpg", announced(p.jpeg, "jpeg", W, 0), why=f"{DAMAGED}|{NOT}|no pixels|empty|size")
    yield File("dimensions", "negative.png", announced(p.png, "png", 2**32 - 1, H), why=f"{DAMAGED}|{NOT}|{LARGE}")
    yield File("dimensions", "more_rows.png", announced(p.png, "png", W, H + 1), why=DAMAGED)
    upside = p.bmp[:54] + saved(p.image[::-1], "BMP")[54:]
    yield File("dimensions", "top_down.bmp", announced(upside, "bmp", W, -H), p.image)
    yield File("dimensions", "one_pixel.png", saved(p.image[:1, :1], "PNG"), p.image[:1, :1])
    yield File("dimensions", "a_line.png", saved(p.image[:1].repeat(90, 1), "PNG"), p.image[:1].repeat(90, 1))
    yield File("dimensions", "a_column.jpg", saved(p.image[:, :1], "JPEG", quality=95, subsampling=0), p.image[:, :1], 4)


def containers(p: Pictures) -> Iterator[File]:
    """What surrounds the pixels in WebP, BMP, GIF and JPEG."""
    yield File(
        "containers", "riff_size.webp", p.webp[:4] + b"\xff\xff\xff\x7f" + p.webp[8:], p.image, 255, f"{DAMAGED}|{NOT}", True
    )
    yield File("containers", "riff_small.webp", p.webp[:4] + b"\x08\0\0\0" + p.webp[8:], p.image, 255, f"{DAMAGED}|{NOT}", True)
    yield File("containers", "no_frame.webp", b"RIFF\x04\0\0\0WEBP", why=f"{DAMAGED}|{NOT}")
    yield File("containers", "depth.bmp", p.bmp[:28] + b"\x63\0" + p.bmp[30:], why=f"{DAMAGED}|{NOT}")
    yield File("containers", "compression.bmp", p.bmp[:30] + b"\x09\0\0\0" + p.bmp[34:], why=f"{DAMAGED}|{NOT}")
    yield File("containers", "offset.bmp", p.bmp[:10] + b"\xff\xff\xff\x7f" + p.bmp[14:], why=f"{DAMAGED}|{NOT}")
    yield File("containers", "no_frame.gif", p.gif[: p.gif.index(b"\x2c")] + b"\x3b", why=f"{DAMAGED}|{NOT}")
    yield File("containers", "code_size.gif", _code_size(p.gif), p.image & 0xC0, 255, f"{DAMAGED}|{NOT}", True)
    yield File("containers", "tail.jpg", p.jpeg + b"tail" * 1000, p.image, 3)
    yield File("containers", "twice.jpg", p.jpeg + p.jpeg, p.image, 3)
    many = b"".join(b"\xff\xfe\xff\xff" + bytes(65_533) for _ in range(100))
    yield File("containers", "comments.jpg", p.jpeg[:2] + many + p.jpeg[2:], p.image, 3)
    yield File("containers", "thumbnail_only.jpg", p.jpeg[:20] + b"\xff\xd9", why=f"{DAMAGED}|{NOT}")
    yield File("containers", "five_components.jpg", _components(p.jpeg, 5), why=f"{DAMAGED}|{NOT}")


def _code_size(gif: bytes) -> bytes:
    at = gif.index(b"\x2c") + 10
    return gif[:at] + b"\x0f" + gif[at + 1 :]


def _components(jpeg: bytes, count: int) -> bytes:
    at = jpeg.index(b"\xff\xc0") + 9
    return jpeg[:at] + bytes([count]) + jpeg[at + 1 :]


FAMILIES = (
    empty, truncated, wrong_extension, flipped, bombs, animated, exif, colours, other_content, chunks, dimensions, containers,
)  # fmt: skip


def files(seed: int = 0) -> list[File]:
    """All of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about the odd things it is asked to write
        start = pictures(seed)
        return [file for family in FAMILIES for file in family(start)]


def write(folder: Path, seed: int = 0) -> list[tuple[Path, File]]:
    """All of them as files below a folder, one folder a family."""
    written = []
    for file in files(seed):
        path = folder / file.family / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.content is None:
            path.mkdir()
        else:
            path.write_bytes(file.content)
        written.append((path, file))
    return written


if __name__ == "__main__":
    for path, file in write(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0):
        print(path, "either" if file.either else "refused" if file.image is None else "decoded", sep="\t")
