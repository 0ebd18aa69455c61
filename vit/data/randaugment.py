"""RandAugment (arXiv 1909.13719) with timm's operations and magnitudes ("rand-mM-nN-mstd0.5-inc1"), inside the jitted step.

Images are float32 with the whole numbers 0 to 255 that Pillow has as uint8. Every operation is one of three kinds, a table of
256 values for each channel, a blend with a degenerate image, or an affine map; an image costs one of each kind, whatever
was drawn.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Contrast",
    "Brightness",
    "Color",
    "Sharpness",
    "Rotate",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
)
CHANCE, SPREAD = 0.5, 0.5  # an operation's probability, and the standard deviation of its magnitude

Image = Float[Array, "H W C"]
Table = Float[Array, "256 C"]
Scalar = Float[Array, ""]


def randaugment(
    keys: Key[Array, "B"], images: Float[Array, "B H W C"], count: int, magnitude: float, fill: Float[Array, "C"]
) -> Float[Array, "B H W C"]:
    """`count` operations drawn for each image, each done with probability 0.5 at `magnitude` (0 to 10) ± 0.5.

    `fill` is the colour of what an affine map brings in; timm takes the data set's mean.
    """

    def layer(key: Key[Array, ""], image: Image) -> Image:
        whether, which, level, sign = jax.random.split(key, 4)
        operation = jax.random.randint(which, (), 0, len(OPERATIONS))
        amount = jnp.clip(magnitude + SPREAD * jax.random.normal(level), 0, 10) / 10
        value = argument(operation, amount, jax.random.bernoulli(sign) * 2.0 - 1)
        return jnp.where(jax.random.bernoulli(whether, CHANCE), apply(image, operation, value, fill), image)

    for i in range(count):
        images = jax.vmap(layer)(jax.vmap(lambda key: jax.random.fold_in(key, i))(keys), images)  # noqa: B023
    return images


def argument(operation: Int[Array, ""], amount: Scalar, sign: Scalar) -> Scalar:
    """What an operation is done with at `amount` (0 to 1), as timm has it; `sign` is 1 or -1.

    Bits kept, threshold, addend, factor of a blend, degrees, slope, or share of the side.
    """
    factor = jnp.maximum(0.1, 1 + sign * 0.9 * amount)
    values = {
        "Posterize": 4 - jnp.floor(4 * amount),
        "Solarize": 256 - jnp.floor(256 * amount),
        "SolarizeAdd": jnp.floor(110 * amount),
        **dict.fromkeys(("Contrast", "Brightness", "Color", "Sharpness"), factor),
        "Rotate": sign * 30 * amount,
        **dict.fromkeys(("ShearX", "ShearY"), sign * 0.3 * amount),
        **dict.fromkeys(("TranslateX", "TranslateY"), sign * 0.45 * amount),
    }
    return jnp.stack([jnp.asarray(values.get(name, 0.0)) for name in OPERATIONS])[operation]


def apply(image: Image, operation: Int[Array, ""], value: Scalar, fill: Float[Array, "C"]) -> Image:
    """One operation on one image."""
    chosen = {name: operation == i for i, name in enumerate(OPERATIONS)}
    blended = jnp.where(chosen["Color"], grey(image), smooth(image))
    affine = chosen["Rotate"] | chosen["ShearX"] | chosen["ShearY"] | chosen["TranslateX"] | chosen["TranslateY"]
    out = look_up(image, table(image, chosen, value))
    out = jnp.where(chosen["Color"] | chosen["Sharpness"], blend(blended, image, value), out)
    return jnp.where(affine, transform(image, *matrix(image.shape, chosen, value), fill), out)


# ---- operations on single values, as tables ----


def table(image: Image, chosen: dict[str, Array], value: Scalar) -> Table:
    """What the chosen operation makes of each value of each channel; the identity, if it isn't of this kind."""
    levels = jnp.broadcast_to(jnp.arange(256.0)[:, None], (256, image.shape[2]))
    counts = histogram(image)
    step = 2 ** (8 - value)
    tables = {
        "AutoContrast": auto_contrast(counts),
        "Equalize": equalize(counts),
        "Invert": 255 - levels,
        "Posterize": jnp.floor(levels / step) * step,
        "Solarize": jnp.where(levels < value, levels, 255 - levels),
        "SolarizeAdd": jnp.where(levels < 128, jnp.minimum(255, levels + value), levels),
        "Contrast": blend(jnp.floor(luma(image).mean() + 0.5), levels, value),
        "Brightness": blend(jnp.zeros(()), levels, value),
    }
    out = levels
    for name, other in tables.items():
        out = jnp.where(chosen[name], other, out)
    return out


def look_up(image: Image, values: Table) -> Image:
    """Each pixel's value in the table of its channel."""
    return jnp.take_along_axis(values, image.astype(jnp.int32).reshape(-1, image.shape[2]), axis=0).reshape(image.shape)


def histogram(image: Image) -> Table:
    """How many pixels of each channel have each value."""
    flat = image.astype(jnp.int32).reshape(-1, image.shape[2])
    return jnp.zeros((256, image.shape[2])).at[flat, jnp.arange(image.shape[2])].add(1.0)


def auto_contrast(counts: Table) -> Table:
    """Each channel stretched to 0 to 255."""
    levels = jnp.arange(256.0)[:, None]
    low = jnp.where(counts > 0, levels, 255).min(axis=0)
    high = jnp.where(counts > 0, levels, 0).max(axis=0)
    scale = 255 / jnp.maximum(high - low, 1)
    # A whole product may come out a hair below: 1e-3 is far less than the nearest other fraction, 1/255.
    return jnp.where(high > low, jnp.clip(jnp.floor((levels - low) * scale + 1e-3), 0, 255), levels)


def equalize(counts: Table) -> Table:
    """Each channel's cumulative histogram made straight."""
    levels = jnp.arange(256.0)[:, None]
    last = jnp.take_along_axis(counts, jnp.where(counts > 0, levels, 0).max(axis=0).astype(jnp.int32)[None], axis=0)
    step = jnp.floor((counts.sum(axis=0) - last) / 255)
    before = jnp.cumsum(counts, axis=0) - counts
    straight = jnp.floor((jnp.floor(step / 2) + before) / jnp.maximum(step, 1))
    return jnp.where(step > 0, jnp.minimum(straight, 255), levels)


# ---- blends ----


def blend(degenerate: Array, image: Array, factor: Scalar) -> Array:
    """From the degenerate image (factor 0) through the image (1) and beyond, cut off as Pillow does."""
    return jnp.floor(jnp.clip(degenerate + factor * (image - degenerate), 0, 255))


def luma(image: Image) -> Float[Array, "H W"]:
    """Pillow's grey (ITU-R 601-2) of an RGB image; a grey image is its own."""
    if image.shape[2] != 3:
        return image[..., 0]
    red, green, blue = jnp.moveaxis(image.astype(jnp.int32), 2, 0)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(jnp.float32)


def grey(image: Image) -> Image:
    """Without colour."""
    return jnp.broadcast_to(luma(image)[..., None], image.shape)


def smooth(image: Image) -> Image:
    """Each pixel five times and its eight neighbours, over 13; the border stays."""
    inner = 4 * image[1:-1, 1:-1]
    for y in range(3):
        for x in range(3):
            inner += image[y : image.shape[0] - 2 + y, x : image.shape[1] - 2 + x]
    return image.at[1:-1, 1:-1].set(jnp.floor(inner / 13 + 0.5))


# ---- affine maps ----


def matrix(shape: tuple[int, ...], chosen: dict[str, Array], value: Scalar) -> tuple[Float[Array, "2 2"], Float[Array, "2"]]:
    """A matrix and a shift that take output places (x, y) in pixels to input places; the identity for other operations."""
    height, width = shape[:2]
    turn = jnp.where(chosen["Rotate"], -value * (math.pi / 180), 0)
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    across, down = (jnp.where(chosen[name], value, 0) for name in ("ShearX", "ShearY"))
    linear = jnp.stack([jnp.stack([cos, sin + across]), jnp.stack([-sin + down, cos])])
    centre = jnp.array([width / 2, height / 2])
    about = jnp.where(chosen["Rotate"], centre - linear @ centre, 0)
    moved = jnp.stack([jnp.where(chosen[f"Translate{axis}"], value * side, 0) for axis, side in (("X", width), ("Y", height))])
    return linear, about + moved


def transform(image: Image, linear: Float[Array, "2 2"], shift: Float[Array, "2"], fill: Float[Array, "C"]) -> Image:
    """Bilinear, as Pillow: pixel centres lie at halves, the border repeats for half a pixel, beyond it is `fill`."""
    height, width, _ = image.shape
    y, x = jnp.mgrid[:height, :width] + 0.5
    x, y = (row[0] * x + row[1] * y + offset for row, offset in zip(linear, shift, strict=True))
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
    dx, dy = ((x - 0.5) - left)[..., None], ((y - 0.5) - top)[..., None]

    def pixel(row: Array, column: Array) -> Image:
        row, column = jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)
        return image.reshape(height * width, -1)[(row * width + column).astype(jnp.int32)]

    upper = pixel(top, left) * (1 - dx) + pixel(top, left + 1) * dx
    lower = pixel(top + 1, left) * (1 - dx) + pixel(top + 1, left + 1) * dx
    mixed = jnp.clip(jnp.floor(upper * (1 - dy) + lower * dy + 1e-3), 0, 255)
    return jnp.where(inside[..., None], mixed, fill)
