"""The decoder against Pillow's own ways and NumPy, format by format; what is damaged is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.data.malformed import chunk, rows
from tests.data.malformed import png as rows_png
from vit.data.decode import MOST_PIXELS, BadImage, decode, exif_orientation, header


def picture(h=24, w=40, c=3):
    """Smooth, so that a lossy format keeps it."""
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, c) if c > 1 else (4, 5)).astype(np.uint8))
    return small.resize((w, h), Image.Resampling.BICUBIC)


def encoded(image, kind, **how):
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def png(array, colour, bits=16, extra=()):
    """A PNG by hand: Pillow writes no 16 bits of colour."""
    chunk = lambda kind, x: struct.pack(">I", len(x)) + kind + x + struct.pack(">I", zlib.crc32(kind + x))  # noqa: E731
    h, w = array.shape[:2]
    rows = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in array)
    head = struct.pack(">IIBBBBB", w, h, bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", head), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*x) for x in chunks)


KINDS = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}, "BMP": {}, "GIF": {}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_image_is_what_pillow_makes_of_it(kind, tmp_path):
    data = encoded(picture(), kind, **KINDS[kind])
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    misnamed = tmp_path / "picture.txt"
    misnamed.write_bytes(data)
    for source in (data, misnamed):
        image = decode(source)
        assert (image.dtype, image.shape, image.flags.c_contiguous) == (np.uint8, (24, 40, 3), True)
        np.testing.assert_array_equal(image, wanted)
    assert header(data)[:4] == (kind.replace("WEBP", "WebP"), 24, 40, 1)


@pytest.mark.parametrize("how", [{"progressive": True}, {"subsampling": "4:4:4"}, {"subsampling": "4:2:2"}])
def test_jpegs_of_all_kinds(how):
    data = encoded(picture(), "JPEG", **how)
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), kind, exif=exif, **KINDS[kind])
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode(data), np.asarray(wanted.convert("RGB")))


def test_orientation_is_what_the_standard_says():
    # Row 0 and column 0 of the stored image are, in the seen one (EXIF 2.3, table 6):
    sides = {1: "top left", 2: "top right", 3: "bottom right", 4: "bottom left", 5: "left top", 6: "right top",
             7: "right bottom", 8: "left bottom"}  # fmt: skip
    stored = np.zeros((8, 12, 3), np.uint8)
    stored[0, :, 0], stored[:, 0, 1] = 255, 255
    for orientation, (row, column) in ((o, s.split()) for o, s in sides.items()):
        exif = Image.Exif()
        exif[0x0112] = orientation
        seen = decode(encoded(Image.fromarray(stored), "PNG", exif=exif))
        edges = {"top": seen[0], "bottom": seen[-1], "left": seen[:, 0], "right": seen[:, -1]}
        assert (edges[row][..., 0] == 255).all()
        assert (edges[column][..., 1] == 255).all()


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_in_either_byte_order(order):
    block = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    assert exif_orientation(block) == 6
    for cut in range(len(block) - 4):
        assert exif_orientation(block[:cut]) in (1, 6)
    assert exif_orientation(block.replace(b"\6", b"\11")) == 1


@settings(deadline=None)
@given(st.binary(max_size=80), st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]))
def test_damaged_exif_never_refuses_a_good_image(junk, start):
    image = picture(8, 8)
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encoded(image, kind, exif=b"Exif\0\0" + start + junk, **KINDS[kind])
        assert decode(data).shape == (8, 8, 3)


def test_a_damaged_chunk_beside_the_pixels_does_not_refuse_a_png():
    data = encoded(picture(), "PNG", exif=b"Exif\0\0II*\0")
    at = data.index(b"eXIf")
    damaged = data[: at + 5] + b"\xff" + data[at + 6 :]
    np.testing.assert_array_equal(decode(damaged), decode(data))


def test_grey_is_repeated():
    for kind in ("JPEG", "PNG", "GIF", "BMP"):
        image = decode(encoded(picture(c=1), kind))
        assert (image == image[..., :1]).all()
    bits = Image.fromarray(np.random.default_rng(0).integers(0, 2, (5, 9)).astype(bool))
    np.testing.assert_array_equal(decode(encoded(bits, "PNG"))[..., 0], np.asarray(bits) * 255)


@pytest.mark.parametrize("adobe", [True, False])
def test_cmyk(adobe):
    inks = picture(c=4)
    data = encoded(Image.frombytes("CMYK", inks.size, inks.tobytes()), "JPEG", quality=100, subsampling=0)
    at = data.index(b"\xff\xeeAdobe") if b"\xff\xeeAdobe" in data else data.index(b"\xff\xee")
    c, m, y, k = np.moveaxis(np.asarray(inks).astype(float), -1, 0)
    if not adobe:  # the same bytes without the marker that says they are inverted
        length = struct.unpack(">H", data[at + 2 : at + 4])[0]
        data = data[:at] + data[at + 2 + length :]
        c, m, y, k = 255 - c, 255 - m, 255 - y, 255 - k
    wanted = np.stack([(255 - x) * (255 - k) / 255 for x in (c, m, y)], -1)
    assert np.abs(decode(data) - wanted).max() < 6


def test_sixteen_bits_are_scaled():
    ramp = np.linspace(0, 65535, 24 * 40).reshape(24, 40)
    wanted = np.round(ramp / 257)
    grey = decode(png(ramp, 0))
    np.testing.assert_allclose(grey, np.repeat(wanted[..., None], 3, -1), atol=1)
    assert (grey.min(), grey.max()) == (0, 255)
    colour = np.stack([ramp, ramp[::-1], ramp[:, ::-1]], -1)
    np.testing.assert_allclose(decode(png(colour, 2)), np.round(colour / 257), atol=1)
    pillows = Image.fromarray(ramp.astype(np.uint16))
    np.testing.assert_array_equal(decode(encoded(pillows, "PNG")), grey)
    # Alpha of 16 bits, and one level declared transparent.
    alpha = np.dstack([colour, ramp.T.reshape(24, 40)])
    share = alpha[..., 3:] / 65535
    np.testing.assert_allclose(decode(png(alpha, 6)), 255 * (1 - share) + share * alpha[..., :3] / 257, atol=2)
    clear = int(ramp.astype(int)[3, 5])
    seen = decode(png(ramp.astype(int), 0, extra=[(b"tRNS", struct.pack(">H", clear))]))
    assert (seen[3, 5] == 255).all()
    np.testing.assert_array_equal(seen[4:], grey[4:])


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_is_transparent_lies_on_white(kind):
    image = picture(c=4)
    x = np.asarray(image).astype(float)
    share = x[..., 3:] / 255
    seen = decode(encoded(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
    np.testing.assert_allclose(seen, x[..., :3] * share + 255 * (1 - share), atol=1)


def test_palettes():
    image = picture().quantize(16)
    colours, places = np.array(image.getpalette()).reshape(-1, 3), np.asarray(image)
    np.testing.assert_array_equal(decode(encoded(image, "PNG")), colours[places])
    clear = int(places[0, 0])
    wanted = np.where((places == clear)[..., None], 255, colours[places])
    for kind in ("PNG", "GIF"):
        np.testing.assert_array_equal(decode(encoded(image, kind, transparency=clear)), wanted)
    half = bytes([128] * 16)  # an alpha for each colour
    np.testing.assert_allclose(decode(encoded(image, "PNG", transparency=half)), (colours[places] + 255) / 2, atol=1)
    grey = decode(png(np.array([[7, 9]]), 0, bits=8, extra=[(b"tRNS", b"\0\7")]))
    assert grey[0].tolist() == [[255] * 3, [9] * 3]
    colour = decode(png(np.array([[[1, 2, 3], [4, 5, 6]]]), 2, bits=8, extra=[(b"tRNS", b"\0\1\0\2\0\3")]))
    assert colour[0].tolist() == [[255] * 3, [4, 5, 6]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame(kind):
    first, *rest = (Image.fromarray(np.full((6, 7, 3), level, np.uint8)) for level in (50, 100, 150))
    data = encoded(first, kind, save_all=True, append_images=rest, **({"lossless": True} if kind == "WEBP" else {}))
    assert (decode(data) == 50).all()


def test_colour_profiles_are_left_alone():
    from PIL import ImageCms

    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for kind in ("JPEG", "PNG", "WEBP"):
        plain, profiled = (encoded(picture(), kind, **KINDS[kind], **extra) for extra in ({}, {"icc_profile": lab}))
        assert decode(plain).shape == decode(profiled).shape
    image = picture()
    np.testing.assert_array_equal(decode(encoded(image, "PNG", icc_profile=lab)), np.asarray(image))


# ---- what is refused ----


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_off_image_is_refused_wherever_it_was_cut(kind):
    data = encoded(picture(), kind, **KINDS[kind])
    whole = decode(data)
    last = {"GIF": 2, "BMP": 0}.get(kind, 1)  # the byte after a GIF's only frame says that there is no other
    for cut in [*range(0, len(data) - last, max(1, len(data) // 150)), len(data) - max(1, last)]:
        if kind == "GIF" and cut >= len(data) - 2:
            continue
        try:
            np.testing.assert_array_equal(decode(data[:cut]), whole)
            assert kind == "GIF", cut
        except BadImage:
            pass


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_flipped_bytes_give_an_image_or_are_refused(kind, data):
    good = encoded(picture(), kind, **KINDS[kind])
    bad = bytearray(good)
    for at in data.draw(st.lists(st.integers(0, len(good) - 1), min_size=1, max_size=8)):
        bad[at] ^= data.draw(st.integers(1, 255))
    try:
        image = decode(bytes(bad))
        assert (image.dtype, image.ndim, image.shape[2]) == (np.uint8, 3, 3)
    except BadImage as error:
        if not 3 < len(str(error)) < 150:
            raise


@settings(deadline=None, max_examples=100)
@given(st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"BM", b"GIF89a", b""]), st.binary(max_size=200))
def test_junk_is_refused(magic, junk):
    with pytest.raises(BadImage):
        decode(magic + junk)


def test_every_flipped_bit_of_a_pngs_pixels_is_seen():
    data = bytearray(encoded(picture(), "PNG"))
    start = data.index(b"IDAT")
    for at in range(start, len(data), 37):
        data[at] ^= 4
        with pytest.raises(BadImage):
            decode(bytes(data))
        data[at] ^= 4


def giant(kind):
    """A small file that announces 20,000 x 20,000 pixels."""
    side = 20_000
    if kind == "PNG":
        return png(np.zeros((1, 1)), 0, 8).replace(
            *(
                struct.pack(">I", 13) + b"IHDR" + h + struct.pack(">I", zlib.crc32(b"IHDR" + h))
                for h in (struct.pack(">IIBBBBB", s, s, 8, 0, 0, 0, 0) for s in (1, side))
            )
        )
    data = bytearray(encoded(picture(), kind))
    if kind == "JPEG":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", side, side)
    if kind == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    if kind == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    if kind == "WEBP":
        data = bytearray(encoded(picture(c=4), kind, lossless=True, exif=b"Exif\0\0II*\0"))
        at = data.index(b"VP8X") + 12
        data[at : at + 6] = struct.pack("<I", 16_382)[:3] * 2
    return bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_announces_too_many_pixels_is_refused_before_it_is_decoded(kind):
    data = giant(kind)
    with pytest.raises(BadImage, match=r"over 100 million|exceeds limit"):
        header(data)  # which decodes nothing
    with pytest.raises(BadImage):
        decode(data)


def test_just_below_the_limit_nothing_warns():
    data = encoded(Image.new("1", (MOST_PIXELS // 10_000, 10_000)), "PNG")
    assert header(data).height == 10_000  # Pillow warns from 89 million pixels on


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it is empty"),
        (b"hello", "it is not a JPEG, PNG, WebP, BMP or GIF"),
        (b"RIFF\x04\0\0\0WAVEfmt ", "it is not a JPEG"),
        (b"\xff\xd8\xff\xe0", "its JPEG header is cut off"),
        (b"\xff\xd8junk, junk", "its JPEG header is damaged"),
        (b"\x89PNG\r\n\x1a\n", "it is cut off"),
        (png(np.zeros((1, 1)), 0, 8, extra=[(b"CgBI", b"\0\0\0\0")]), "a PNG chunk of an unknown kind, 'CgBI'"),
    ],
)
def test_why(data, why):
    with pytest.raises(BadImage, match=why):
        decode(data)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for name in ("nothing.png", ".", "loop.png", "x" * 300):
        with pytest.raises(BadImage, match="can't be read"):
            decode(tmp_path / name)


def test_a_subsampling_that_turbojpeg_does_not_know(recwarn):
    data = bytearray(encoded(picture(32, 32), "JPEG", subsampling="4:2:0", exif=b"Exif\0\0II*\0", dpi=(72, 72)))
    at = data.index(b"\xff\xc0")
    data[at + 14] = 0x12  # blue's chroma twice as high
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decode(bytes(data)), np.asarray(image))
    assert not recwarn.list


# ---- what an adversary would make ----

PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def interlaced(pixels, passes):
    """An Adam7 PNG that has only so many of its seven passes."""
    body = b"".join(rows(pixels[y::down, x::right]) for y, x, down, right in PASSES[:passes])
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("passes", range(1, 8))
def test_an_interlaced_png_needs_all_its_passes(passes):
    pixels = np.random.default_rng(0).integers(1, 255, (33, 33, 3)).astype(np.uint8)  # its last row is in passes 1, 2, 4, 6
    if passes == 7:
        np.testing.assert_array_equal(decode(interlaced(pixels, 7)), pixels)
    else:
        with pytest.raises(BadImage, match="missing"):
            decode(interlaced(pixels, passes))


def test_a_path_with_a_zero_byte(tmp_path):
    with pytest.raises(BadImage, match="zero byte"):
        decode(tmp_path / "a\0b.png")


@pytest.mark.parametrize(("bits", "row"), [(1, 0b01010101), (2, 0b00011011), (4, 0x0F)])
@pytest.mark.parametrize("clear", [0, 1, 3])
def test_a_transparent_grey_of_few_bits(bits, row, clear):
    levels = np.array([row >> at & 2**bits - 1 for at in range(8 - bits, -1, -bits)])
    trns = chunk(b"tRNS", struct.pack(">H", clear))
    seen = decode(rows_png(8 // bits, 1, b"\0" + bytes([row]), bits, 0, trns))
    if bits > 1 or clear < 2:
        np.testing.assert_array_equal(seen[0, :, 0], np.where(levels == clear, 255, levels * 255 // (2**bits - 1)))


def test_a_transparent_colour_of_16_bits():
    colours = np.array([[[0x1234, 0x5678, 0x9ABC], [0x3434, 0x7878, 0xBCBC], [0xFFFF, 0, 0]]])
    for clear in range(3):
        seen = decode(png(colours, 2, extra=[(b"tRNS", struct.pack(">3H", *colours[0, clear]))]))
        np.testing.assert_array_equal(seen[0], np.where(np.arange(3)[:, None] == clear, 255, colours[0] >> 8))


def test_what_is_before_a_gifs_frame_changes_nothing():
    data = encoded(picture().quantize(16), "GIF", transparency=3, comment=b"a" * 700)
    at = data.index(b"!")
    np.testing.assert_array_equal(decode(data[:at] + b"\0!\xfe\2,;\0" + data[at:]), decode(data))


def test_an_image_in_bands_is_the_same(monkeypatch):
    grey16 = png(np.arange(24 * 40).reshape(24, 40) * 68, 0, extra=[(b"tRNS", b"\0\x44")])
    cmyk = Image.frombytes("CMYK", (40, 24), picture(c=4).tobytes())
    see_through = encoded(picture().quantize(16), "GIF", transparency=3)
    files = [grey16, see_through, encoded(cmyk, "JPEG"), *(encoded(picture(c=4), k) for k in ("PNG", "WEBP"))]
    files += [encoded(picture(), k, **KINDS[k]) for k in KINDS]
    at_once = [decode(data) for data in files]
    monkeypatch.setattr("vit.data.decode.BAND", 200)
    monkeypatch.setattr("vit.data.decode.LARGE", 200)
    for data, wanted in zip(files, at_once, strict=True):
        np.testing.assert_array_equal(decode(data), wanted)
