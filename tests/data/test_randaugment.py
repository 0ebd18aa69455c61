"""RandAugment against Pillow, with the calls that timm makes (timm/data/auto_augment.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from vit.data.randaugment import OPERATIONS, apply, argument, randaugment

FILL = (125, 123, 114)


def in_pillow(name: str, image: Image.Image, value: float) -> Image.Image:
    affine = {
        "ShearX": (1, value, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, value, 1, 0),
        "TranslateX": (1, 0, value * image.size[0], 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, value * image.size[1]),
    }
    if name in affine:
        how = {"resample": Image.Resampling.BILINEAR, "fillcolor": FILL}
        return image.transform(image.size, Image.Transform.AFFINE, affine[name], **how)
    if name == "SolarizeAdd":
        return image.point([min(255, i + int(value)) if i < 128 else i for i in range(256)] * 3)
    return {
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Invert": lambda: ImageOps.invert(image),
        "Posterize": lambda: ImageOps.posterize(image, int(value)) if value else image.point([0] * 768),
        "Solarize": lambda: ImageOps.solarize(image, int(value)),
        "Contrast": lambda: ImageEnhance.Contrast(image).enhance(value),
        "Brightness": lambda: ImageEnhance.Brightness(image).enhance(value),
        "Color": lambda: ImageEnhance.Color(image).enhance(value),
        "Sharpness": lambda: ImageEnhance.Sharpness(image).enhance(value),
        "Rotate": lambda: image.rotate(value, resample=Image.Resampling.BILINEAR, fillcolor=FILL),
    }[name]()


def timm_value(name: str, level: float, sign: int) -> float:
    """`LEVEL_TO_ARG` of timm's increasing set, at a level of 0 to 10."""
    share = level / 10
    if name == "Posterize":
        return 4 - int(share * 4)
    if name == "Solarize":
        return 256 - int(share * 256)
    if name == "SolarizeAdd":
        return int(share * 110)
    if name in ("Color", "Contrast", "Brightness", "Sharpness"):
        return max(0.1, 1 + sign * share * 0.9)
    reach = {"Rotate": 30, "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 0.45, "TranslateY": 0.45}.get(name, 0)
    return sign * share * reach


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:24, :36]
    smooth = np.stack([x * 4 + y, 200 - 3 * y, 90 + 40 * np.sin(x / 3) + y], axis=-1).clip(0, 255)
    few = rng.integers(0, 3, (24, 36, 3)) * 70 + 20
    flat = np.full((24, 36, 3), (10, 128, 255))
    return [a.astype(np.uint8) for a in (rng.integers(0, 256, (24, 36, 3)), smooth, few, flat)]


run = jax.jit(apply)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("level", [0.0, 3.3, 9.0, 10.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_every_operation_is_pillows(name, level, sign):
    operation = jnp.asarray(OPERATIONS.index(name))
    value = argument(operation, jnp.asarray(level / 10), jnp.asarray(float(sign)))
    assert float(value) == pytest.approx(timm_value(name, level, sign), abs=1e-5)
    for picture in pictures():
        ours = np.asarray(run(jnp.asarray(picture, jnp.float32), operation, value, jnp.asarray(FILL, jnp.float32)))
        theirs = np.asarray(in_pillow(name, Image.fromarray(picture), timm_value(name, level, sign))).astype(float)
        assert ours.dtype == np.float32
        assert (ours == np.floor(ours)).all()
        assert ours.min() >= 0
        assert ours.max() <= 255
        differ = np.abs(ours - theirs)
        if name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"):
            # Both cut off fractions, Pillow in double precision: of a whole number (a shift by 16.2 pixels gives one in five)
            # it may see the one below, and a place at the very edge may fall on its other side.
            assert (differ.max(axis=-1) > 1).mean() < 0.005
            assert (differ > 0).mean() < 0.25
        else:
            assert differ.max() <= (1 if name in ("Color", "Sharpness", "Contrast", "Brightness") else 0)
            assert (differ > 0).mean() < 0.01


augmented = jax.jit(randaugment, static_argnums=2)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 3), st.floats(0, 10))
def test_images_stay_images_and_follow_their_own_keys(seed, count, magnitude):
    images = jnp.asarray(np.stack(pictures()), jnp.float32)
    keys = jax.random.split(jax.random.key(seed), 4)
    out = augmented(keys, images, count, magnitude, jnp.asarray(FILL, jnp.float32))
    assert out.shape == images.shape
    assert bool(((out >= 0) & (out <= 255) & (out == jnp.floor(out))).all())
    alone = augmented(keys[2:3], images[2:3], count, magnitude, jnp.asarray(FILL, jnp.float32))
    np.testing.assert_array_equal(alone[0], out[2])


def test_half_of_the_operations_are_done_and_all_of_them_occur():
    picture = jnp.asarray(pictures()[1], jnp.float32)
    keys = jax.random.split(jax.random.key(0), 900)
    out = jax.jit(lambda keys: randaugment(keys, jnp.broadcast_to(picture, (900, *picture.shape)), 1, 9.0, jnp.zeros(3)))(keys)
    untouched = float((out == picture).all(axis=(1, 2, 3)).mean())
    assert 0.45 < untouched < 0.56
    # Of the 450 others, nine operations in fifteen have a strength of their own each time: about 270 different images.
    assert 220 < len(np.unique(np.asarray(out).reshape(900, -1), axis=0)) < 330


def test_grey_images_have_one_channel():
    grey = jnp.asarray(pictures()[1][..., :1], jnp.float32)
    for i, name in enumerate(OPERATIONS):
        ours = np.asarray(run(grey, jnp.asarray(i), argument(jnp.asarray(i), jnp.asarray(0.9), jnp.ones(())), jnp.full(1, 7.0)))
        assert ours.shape == grey.shape
        if name == "Color":
            np.testing.assert_array_equal(ours, grey)
