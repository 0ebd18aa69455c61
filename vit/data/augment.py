"""Pixels to what the model sees: normalisation, and random changes in training. Pure functions, inside the jitted step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from vit.config import AugmentConfig, DigitsData
from vit.errors import UserError

Prepare = Callable[[dict[str, Any], Key[Array, "B"] | None], dict[str, Any]]


def make_prepare(data: DigitsData, augment: AugmentConfig) -> Prepare:
    """(batch of uint8 images, keys) → batch of normalised float32 images, augmented if there are keys."""

    def prepare(batch: dict[str, Any], keys: Key[Array, "B"] | None) -> dict[str, Any]:
        images = batch["image"].astype(jnp.float32) / 255
        if keys is not None:
            # 2**31: apart from the numbers that the model folds in for its layers.
            images = affine(jax.vmap(lambda key: jax.random.fold_in(key, 2**31))(keys), images, augment)
        return {**batch, "image": normalise(images, data)}

    return prepare


def preprocessing(data: DigitsData, described: dict[str, Any]) -> dict[str, Any]:
    """What must be done to pixels before the model, for whoever serves it.

    Raises `UserError` if the statistics don't fit the images' channels.
    """
    if len(data.mean) not in (1, described["channels"]):
        what = f"--data.mean and --data.std have {len(data.mean)} values, the images {described['channels']} channels"
        raise UserError(what, described["dataset"], "give one value, or one a channel")
    size = {name: described[name] for name in ("image_size", "channels")}
    return {**size, "scale": 1 / 255, "mean": list(data.mean), "std": list(data.std)}


def normalise(images: Float[Array, "B H W C"], data: DigitsData) -> Float[Array, "B H W C"]:
    """Pixels in [0, 1] to mean 0 and standard deviation 1 over the data set."""
    return (images - jnp.asarray(data.mean)) / jnp.asarray(data.std)


def to_pixels(images: Float[Array, "B H W C"], data: DigitsData) -> UInt8[Array, "B H W C"]:
    """The inverse of `normalise`, for pictures."""
    pixels = images * jnp.asarray(data.std) + jnp.asarray(data.mean)
    return jnp.clip(jnp.round(pixels * 255), 0, 255).astype(jnp.uint8)


def affine(keys: Key[Array, "B"], images: Float[Array, "B H W C"], config: AugmentConfig) -> Float[Array, "B H W C"]:
    """Rotate, zoom, shear and shift each image by its own random amounts, bilinearly; what comes in is black."""
    if not any((config.rotate, config.zoom, config.shear, config.shift)):
        return images
    _, height, width, _ = images.shape
    matrices, shifts = jax.vmap(lambda key: random_affine(key, config, (height, width)))(keys)
    return jax.vmap(warp)(images, matrices, shifts)


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


def warp(image: Float[Array, "H W C"], matrix: Float[Array, "2 2"], shift: Float[Array, "2"]) -> Float[Array, "H W C"]:
    """The image whose pixel p, from the centre, is the input's at `matrix @ p + shift`; zero outside."""
    height, width, _ = image.shape
    centre = (jnp.array([height, width]) - 1) / 2
    grid = jnp.stack(jnp.mgrid[:height, :width], axis=-1) - centre
    y, x = jnp.moveaxis(grid @ matrix.T + shift + centre, -1, 0)
    sample = lambda channel: jax.scipy.ndimage.map_coordinates(channel, [y, x], order=1)  # noqa: E731
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)
