"""Augmentation against SciPy, and its promises: pure, per example, never at evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from vit.config import AugmentConfig, DigitsData
from vit.data.augment import affine, make_prepare, preprocessing, random_affine, to_pixels, warp
from vit.errors import UserError

STRONG = AugmentConfig(rotate=30, zoom=0.3, shear=0.2, shift=0.2)


def batch(n=6, h=8, w=10, c=3):
    rng = np.random.default_rng(0)
    return {"image": jnp.asarray(rng.integers(0, 256, (n, h, w, c)), jnp.uint8), "id": jnp.arange(n)}


@pytest.mark.parametrize("seed", range(5))
def test_warp_is_scipys_affine_transform(seed):
    image = np.asarray(batch()["image"][0], np.float32)
    matrix, shift = map(np.asarray, random_affine(jax.random.key(seed), STRONG, image.shape[:2]))
    centre = (np.array(image.shape[:2]) - 1) / 2
    offset = centre + shift - matrix @ centre
    wanted = np.stack(
        [scipy.ndimage.affine_transform(image[..., c], matrix, offset, order=1, mode="grid-constant") for c in range(3)], -1
    )
    got = warp(jnp.asarray(image), jnp.asarray(matrix), jnp.asarray(shift))
    np.testing.assert_allclose(got, wanted, atol=0.05)


def test_a_pure_shift_moves_whole_pixels():
    image = jnp.asarray(batch()["image"][0], jnp.float32)
    moved = warp(image, jnp.eye(2), jnp.array([1.0, -2.0]))
    np.testing.assert_allclose(moved[:-1, 2:], image[1:, :-2], atol=1e-4)
    assert not np.any(moved[-1])


def test_amounts_stay_inside_their_limits():
    keys = jax.random.split(jax.random.key(0), 2000)
    limits = AugmentConfig(rotate=30)
    matrices, shifts = jax.vmap(lambda k: random_affine(k, limits, (8, 8)))(keys)
    angles = np.rad2deg(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert 29 < np.abs(angles).max() <= 30.001
    assert abs(angles.mean()) < 2
    assert not np.any(shifts)
    _, shifts = jax.vmap(lambda k: random_affine(k, AugmentConfig(shift=0.25), (8, 16)))(keys)
    np.testing.assert_allclose(np.abs(shifts).max(axis=0), [2, 4], rtol=0.02)


def test_augmentation_follows_the_key_and_not_the_company():
    images = batch()["image"].astype(jnp.float32)
    keys = jax.random.split(jax.random.key(1), 6)
    together = affine(keys, images, STRONG)
    np.testing.assert_allclose(affine(keys[3:4], images[3:4], STRONG), together[3:4], atol=1e-3)
    assert np.abs(together - images).max() > 1
    assert np.abs(affine(keys[::-1], images, STRONG) - together).max() > 1


def test_evaluation_only_normalises():
    data, whole = DigitsData(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)), batch()
    seen = make_prepare(data, STRONG)(whole, None)
    wanted = (np.asarray(whole["image"]) / 255 - np.array(data.mean)) / np.array(data.std)
    np.testing.assert_allclose(seen["image"], wanted, atol=1e-5)
    np.testing.assert_array_equal(to_pixels(seen["image"], data), whole["image"])
    np.testing.assert_array_equal(seen["id"], whole["id"])


def test_without_amounts_training_images_are_left_alone():
    prepare, keys = make_prepare(DigitsData(), AugmentConfig()), jax.random.split(jax.random.key(0), 6)
    np.testing.assert_array_equal(prepare(batch(), keys)["image"], prepare(batch(), None)["image"])


def test_statistics_must_fit_the_channels():
    described = {"dataset": "digits", "image_size": [8, 8], "channels": 1}
    assert preprocessing(DigitsData(), described)["mean"] == [0.305]
    with pytest.raises(UserError, match="have 3 values, the images 1 channels"):
        preprocessing(DigitsData(mean=(0.1,) * 3, std=(0.1,) * 3), described)
