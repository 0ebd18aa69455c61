"""Pixels to what the model sees: normalisation, and random changes in training. Pure functions, inside the jitted step.

Every example's changes follow from its own key, so they are the same on any number of devices.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num, UInt8

from vit.config import VOID, AugmentConfig, Data
from vit.data.randaugment import randaugment
from vit.errors import UserError

Prepare = Callable[[dict[str, Any], Key[Array, "B"] | None], dict[str, Any]]
Images = Float[Array, "B H W C"]
Keys = Key[Array, "B"]

FILL = {"label": VOID, "instance": 0}  # what comes into a map of places from outside


def make_prepare(data: Data, augment: AugmentConfig) -> Prepare:
    """(batch of uint8 images, keys) → batch of normalised float32 images, augmented if there are keys.

    Mixed images come with `partner`, the label of the other image, and `share`, the part of the target that is their own. A
    mask (`label` or `instance` (B, H, W)) moves with its image, by the same keys, and so do `boxes` (B, M, 4) with a flip.
    """

    def prepare(batch: dict[str, Any], keys: Keys | None) -> dict[str, Any]:
        pixels = batch["image"].astype(jnp.float32)
        if keys is None:
            return {**batch, "image": normalise(pixels / 255, data)}
        # 2**31 and on: apart from the numbers that the model folds in for its layers.
        key = [jax.vmap(lambda k, i=i: jax.random.fold_in(k, 2**31 + i))(keys) for i in range(7)]  # type: ignore[misc]
        maps = {name: batch[name] for name in FILL if name in batch and batch[name].ndim == 3}
        if augment.crop:
            pixels = pad_and_crop(key[1], pixels, augment.crop)
            maps = {name: pad_and_crop(key[1], x[..., None], augment.crop, FILL[name])[..., 0] for name, x in maps.items()}
        if augment.flip:
            pixels = flip(key[2], pixels)
            maps = {name: flip(key[2], x[..., None])[..., 0] for name, x in maps.items()}
            batch = {**batch, "boxes": flip_boxes(key[2], batch["boxes"])} if "boxes" in batch else batch
        if augment.colour:
            pixels = colour(key[6], pixels, augment.colour)
        if augment.randaugment:
            fill = jnp.broadcast_to(jnp.round(255 * jnp.asarray(data.mean)), pixels.shape[-1:])
            pixels = randaugment(key[3], pixels, augment.randaugment, augment.magnitude, fill)
        images = normalise(affine(key[0], pixels / 255, augment), data)
        maps = {name: affine(key[0], x[..., None], augment, FILL[name])[..., 0] for name, x in maps.items()}
        if augment.erase:
            images = erase(key[4], images, augment.erase)
        if augment.mixup or augment.cutmix:
            images, share = mix(key[5], images, augment.mixup, augment.cutmix)
            batch = {**batch, "partner": jnp.roll(batch["label"], 1), "share": share}
        return {**batch, **maps, "image": images}

    return prepare


def preprocessing(data: Data, described: dict[str, Any]) -> dict[str, Any]:
    """What must be done to pixels before the model, for whoever serves it.

    Raises `UserError` if the statistics don't fit the images' channels.
    """
    if len(data.mean) not in (1, described["channels"]):
        what = f"--data.mean and --data.std have {len(data.mean)} values, the images {described['channels']} channels"
        raise UserError(what, described["dataset"], "give one value, or one a channel")
    size = {name: described[name] for name in ("image_size", "channels")}
    return {**size, "scale": 1 / 255, "mean": list(data.mean), "std": list(data.std)}


def normalise(images: Images, data: Data) -> Images:
    """Pixels in [0, 1] to mean 0 and standard deviation 1 over the data set."""
    return (images - jnp.asarray(data.mean)) / jnp.asarray(data.std)


def to_pixels(images: Images, data: Data) -> UInt8[Array, "B H W C"]:
    """The inverse of `normalise`, for pictures."""
    pixels = images * jnp.asarray(data.std) + jnp.asarray(data.mean)
    return jnp.clip(jnp.round(pixels * 255), 0, 255).astype(jnp.uint8)


# ---- where things are ----


def resize(images: Float[Array, "B H W C"], size: int) -> Float[Array, "B s s C"]:
    """To squares of `size` pixels: bilinear, with antialiasing."""
    return jax.image.resize(images, (len(images), size, size, images.shape[-1]), "linear", antialias=True)


def pad_and_crop(keys: Keys, images: Num[Array, "B H W C"], padding: int, fill: int = 0) -> Num[Array, "B H W C"]:
    """Each image moved by up to `padding` whole pixels either way, in each direction; what comes in is `fill`, black.

    The same as padding all around and cropping the old size at random.
    """

    def crop(key: Key[Array, ""], image: Num[Array, "h w C"]) -> Num[Array, "H W C"]:
        y, x = jax.random.randint(key, (2,), 0, 2 * padding + 1)
        return jax.lax.dynamic_slice(image, (y, x, 0), images.shape[1:])

    around = (padding, padding)
    return jax.vmap(crop)(keys, jnp.pad(images, ((0, 0), around, around, (0, 0)), constant_values=fill))


def flip(keys: Keys, images: Num[Array, "B H W C"]) -> Num[Array, "B H W C"]:
    """Left and right exchanged in every other image, by chance."""
    flipped = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)


def flip_boxes(keys: Keys, boxes: Float[Array, "B M 4"]) -> Float[Array, "B M 4"]:
    """What boxes (y0, x0, y1, x1) in [0, 1] become where `flip` with the same keys exchanges left and right."""
    flipped = jax.vmap(jax.random.bernoulli)(keys)
    other = jnp.stack([boxes[..., 0], 1 - boxes[..., 3], boxes[..., 2], 1 - boxes[..., 1]], axis=-1)
    return jnp.where(flipped[:, None, None], other, boxes)


def affine(keys: Keys, images: Num[Array, "B H W C"], config: AugmentConfig, fill: int | None = None) -> Num[Array, "B H W C"]:
    """Rotate, zoom, shear and shift each image by its own random amounts, bilinearly; what comes in is black.

    With `fill` the values are class or object numbers: the nearest is taken, and `fill` comes in.
    """
    if not any((config.rotate, config.zoom, config.shear, config.shift)):
        return images
    _, height, width, _ = images.shape
    matrices, shifts = jax.vmap(lambda key: random_affine(key, config, (height, width)))(keys)
    return jax.vmap(lambda image, matrix, shift: warp(image, matrix, shift, fill))(images, matrices, shifts)


def random_affine(
    key: Key[Array, ""], config: AugmentConfig, size: tuple[int, int]
) -> tuple[Float[Array, "2 2"], Float[Array, "2"]]:
    """A matrix and a shift in pixels that take output places (row, column), from the centre, to input places."""
    angle, zoom_y, zoom_x, shear, *shift = jax.random.uniform(key, (6,), minval=-1.0)
    turn = angle * jnp.deg2rad(config.rotate)
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    rotation = jnp.array([[cos, -sin], [sin, cos]])
    stretch = jnp.array([[1 / (1 + config.zoom * zoom_y), 0.0], [config.shear * shear, 1 / (1 + config.zoom * zoom_x)]])
    return rotation @ stretch, jnp.stack(shift) * config.shift * jnp.asarray(size)


def warp(
    image: Num[Array, "H W C"], matrix: Float[Array, "2 2"], shift: Float[Array, "2"], fill: int | None = None
) -> Num[Array, "H W C"]:
    """The image whose pixel p, from the centre, is the input's at `matrix @ p + shift`; zero outside.

    With `fill` the input's nearest pixel, and `fill` outside.
    """
    height, width, _ = image.shape
    centre = (jnp.array([height, width]) - 1) / 2
    grid = jnp.stack(jnp.mgrid[:height, :width], axis=-1) - centre
    y, x = jnp.moveaxis(grid @ matrix.T + shift + centre, -1, 0)
    order, outside = (1, 0) if fill is None else (0, fill)
    sample = lambda channel: jax.scipy.ndimage.map_coordinates(channel, [y, x], order=order, cval=outside)  # noqa: E731
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


def colour(keys: Keys, images: Images, strength: float) -> Images:
    """Brightness, contrast and saturation of each image, one after the other, by factors in [1 - strength, 1 + strength].

    As torchvision's ColorJitter: towards black, towards the mean of the grey image, towards each pixel's grey.
    """
    factors = jax.vmap(lambda key: jax.random.uniform(key, (3,), minval=1 - strength, maxval=1 + strength))(keys)
    brightness, contrast, saturation = jnp.moveaxis(factors[..., None, None, None], 1, 0)
    luma = jnp.array([0.299, 0.587, 0.114]) if images.shape[-1] == 3 else jnp.full(images.shape[-1], 1 / images.shape[-1])
    images = jnp.clip(images * brightness, 0, 255)
    mean = (images @ luma).mean(axis=(1, 2), keepdims=True)[..., None]
    images = jnp.clip(mean + contrast * (images - mean), 0, 255)
    grey = (images @ luma)[..., None]
    return jnp.clip(grey + saturation * (images - grey), 0, 255)


# ---- parts hidden, images mixed ----


def inside(box: Int[Array, "4"], size: tuple[int, int]) -> Bool[Array, "H W 1"]:
    """Where an image of that size lies in the box (y0, x0, y1, x1)."""
    y, x = jnp.mgrid[: size[0], : size[1]]
    return ((y >= box[0]) & (x >= box[1]) & (y < box[2]) & (x < box[3]))[..., None]


def erase(keys: Keys, images: Images, chance: float) -> Images:
    """Random erasing (arXiv 1708.04896) as timm does it: normal noise in a box of 2 to 33 % of the area, 3:10 to 10:3.

    Of ten boxes the first that fits; an image with none is left as it is.
    """
    _, height, width, channels = images.shape

    def one(key: Key[Array, ""], image: Float[Array, "H W C"]) -> Float[Array, "H W C"]:
        whether, size, shape, place, noise = jax.random.split(key, 5)
        area = jax.random.uniform(size, (10,), minval=0.02, maxval=1 / 3) * height * width
        ratio = jnp.exp(jax.random.uniform(shape, (10,), minval=jnp.log(0.3), maxval=jnp.log(1 / 0.3)))
        h, w = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
        fits = (h < height) & (w < width)
        first = jnp.argmax(fits)
        side = jnp.stack([h[first], w[first]])
        corner = jnp.floor(jax.random.uniform(place, (2,)) * (jnp.array([height, width]) - side + 1))
        box = jnp.concatenate([corner, corner + side]).astype(jnp.int32)
        hidden = inside(box, (height, width)) & fits.any() & jax.random.bernoulli(whether, chance)
        return jnp.where(hidden, jax.random.normal(noise, (height, width, channels)), image)

    return jax.vmap(one)(keys, images)


def mix(keys: Keys, images: Images, mixup: float, cutmix: float) -> tuple[Images, Float[Array, "B"]]:
    """Mixup (arXiv 1710.09412) or CutMix (arXiv 1905.04899) of each image with the one before it in the batch.

    Each image's own share is drawn from Beta(α, α), α being `mixup` or `cutmix`; with both, an image gets one or the other.
    Returns the images and what of each is still its own.
    """
    _, height, width, _ = images.shape

    def one(key: Key[Array, ""], image: Float[Array, "H W C"], other: Float[Array, "H W C"]) -> tuple[Array, Array]:
        which, part, place = jax.random.split(key, 3)
        cut = jax.random.bernoulli(which) if mixup and cutmix else jnp.asarray(bool(cutmix))
        alpha = jnp.where(cut, cutmix or 1.0, mixup or 1.0)
        share = jax.random.beta(part, alpha, alpha)
        box = cut_box(place, share, (height, width))
        hole = inside(box, (height, width))
        kept = 1 - hole.mean()
        pasted, blended = jnp.where(hole, other, image), share * image + (1 - share) * other
        return jnp.where(cut, pasted, blended), jnp.where(cut, kept, share)

    return jax.vmap(one)(keys, images, jnp.roll(images, 1, axis=0))


def cut_box(key: Key[Array, ""], share: Float[Array, ""], size: tuple[int, int]) -> Int[Array, "4"]:
    """A box of 1 - `share` of the area and of the image's shape, its centre anywhere, cut off at the border."""
    sides = jnp.asarray(size)
    half = jnp.floor(sides * jnp.sqrt(1 - share)).astype(jnp.int32) // 2
    centre = jnp.floor(jax.random.uniform(key, (2,)) * sides).astype(jnp.int32)
    return jnp.concatenate([jnp.clip(centre - half, 0, sides), jnp.clip(centre + half, 0, sides)])
