"""Crops, flips, erasing, mixup and CutMix against NumPy: what comes out is what these operations may give, and as often."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vit.config import AugmentConfig, TfdsData
from vit.data.augment import erase, flip, make_prepare, mix, pad_and_crop

EVERYTHING = AugmentConfig(
    rotate=10, zoom=0.1, shear=0.1, shift=0.1, crop=4, flip=True, randaugment=2, erase=0.5, mixup=0.8, cutmix=1.0
)


def images(n=300, h=12, w=16, c=3):
    return np.random.default_rng(0).integers(0, 256, (n, h, w, c)).astype(np.float32)


def keys(n=300, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def rectangle(mask):
    """(y0, x0, y1, x1) of the True part, which must be a full rectangle; None if there's nothing."""
    if not mask.any():
        return None
    (y, x), shape = np.nonzero(mask), mask.shape
    box = y.min(), x.min(), y.max() + 1, x.max() + 1
    assert mask[box[0] : box[2], box[1] : box[3]].all(), shape
    return box


def test_crops_are_numpys_and_each_place_is_as_likely():
    before = images(900)
    after = np.asarray(pad_and_crop(keys(900), jnp.asarray(before), 2))
    counts = np.zeros((5, 5), int)
    for old, new in zip(before, after, strict=True):
        padded = np.pad(old, ((2, 2), (2, 2), (0, 0)))
        found = [(y, x) for y in range(5) for x in range(5) if (padded[y : y + 12, x : x + 16] == new).all()]
        assert len(found) == 1
        counts[found[0]] += 1
    assert scipy.stats.chisquare(counts.ravel()).pvalue > 0.001


def test_flips_are_numpys_and_every_other():
    before = images()
    after = np.asarray(flip(keys(), jnp.asarray(before)))
    turned = (after == before[:, :, ::-1]).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(after[~turned], before[~turned])
    assert 0.4 < turned.mean() < 0.6


def timms_box(rng, height, width):
    """The sides that timm's RandomErasing draws (timm/data/random_erasing.py)."""
    for _ in range(10):
        area = rng.uniform(0.02, 1 / 3) * height * width
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w < width and h < height:
            return h, w
    return 0, 0


def test_erasing_is_timms():
    before = images(600, 24, 32) / 255
    after = np.asarray(erase(keys(600), jnp.asarray(before), 0.6))
    boxes = [rectangle((old != new).any(axis=-1)) for old, new in zip(before, after, strict=True)]
    sides = [(box[2] - box[0], box[3] - box[1]) for box in boxes if box]
    assert 0.55 < len(sides) / 600 < 0.65
    rng = np.random.default_rng(0)
    wanted = [timms_box(rng, 24, 32) for _ in range(2000)]
    for ours, theirs in zip(zip(*sides, strict=True), zip(*wanted, strict=True), strict=True):
        assert scipy.stats.ks_2samp(ours, theirs).pvalue > 0.001
    noise = np.concatenate([new[b[0] : b[2], b[1] : b[3]].ravel() for new, b in zip(after, boxes, strict=True) if b])
    assert scipy.stats.kstest(noise[:5000], "norm").pvalue > 0.001
    assert {0} < {box[0] for box in boxes if box}  # anywhere, the edge included
    assert max(box[2] for box in boxes if box) == 24


@pytest.mark.parametrize("alpha", [0.2, 0.8])
def test_mixup_is_numpys_and_its_shares_are_beta(alpha):
    before = images()
    after, share = map(np.asarray, mix(keys(), jnp.asarray(before), alpha, 0.0))
    part = share[:, None, None, None]
    np.testing.assert_allclose(after, part * before + (1 - part) * np.roll(before, 1, axis=0), rtol=1e-5)
    assert scipy.stats.kstest(share, scipy.stats.beta(alpha, alpha).cdf).pvalue > 0.001


def test_cutmix_pastes_a_box_and_tells_its_share():
    before = images(600, 24, 32)
    other = np.roll(before, 1, axis=0)
    after, share = map(np.asarray, mix(keys(600), jnp.asarray(before), 0.0, 1.0))
    rng, drawn = np.random.default_rng(0), []
    for old, from_other, new, kept in zip(before, other, after, share, strict=True):
        pasted = (new != old).any(axis=-1)
        box = rectangle(pasted)
        np.testing.assert_array_equal(new[pasted], from_other[pasted])
        assert kept == pytest.approx(1 - pasted.mean(), abs=1e-6)
        if box and box[0] > 0 and box[2] < 24 and box[1] > 0 and box[3] < 32:
            assert abs((box[2] - box[0]) / 24 - (box[3] - box[1]) / 32) <= 2 / 24  # of the image's shape
    for _ in range(2000):  # timm's rand_bbox
        cut = math.sqrt(1 - rng.beta(1, 1))
        (y, x), (h, w) = (rng.integers(24), rng.integers(32)), (int(24 * cut), int(32 * cut))
        y0, y1, x0, x1 = max(y - h // 2, 0), min(y + h // 2, 24), max(x - w // 2, 0), min(x + w // 2, 32)
        drawn.append(1 - (y1 - y0) * (x1 - x0) / (24 * 32))
    assert scipy.stats.ks_2samp(share, drawn).pvalue > 0.001


def test_with_both_an_image_gets_one_of_the_two():
    before = images(400)
    other = np.roll(before, 1, axis=0)
    after, _ = mix(keys(400), jnp.asarray(before), 1.0, 1.0)
    pasted = ((after == before) | (after == other)).all(axis=(1, 2, 3))
    assert 0.42 < float(pasted.mean()) < 0.58


def test_labels_travel_with_mixed_images():
    whole = {"image": jnp.asarray(images(8), jnp.uint8), "label": jnp.arange(8)}
    mixed = make_prepare(TfdsData(), AugmentConfig(mixup=1.0))(whole, keys(8))
    np.testing.assert_array_equal(mixed["partner"], [7, 0, 1, 2, 3, 4, 5, 6])
    plain = make_prepare(TfdsData(), AugmentConfig())(whole, keys(8))["image"]
    part = np.asarray(mixed["share"])[:, None, None, None]
    wanted = part * plain + (1 - part) * np.roll(plain, 1, axis=0)
    np.testing.assert_allclose(mixed["image"], wanted, atol=1e-5)


def test_never_at_evaluation():
    whole = {"image": jnp.asarray(images(8), jnp.uint8), "label": jnp.arange(8)}
    seen = make_prepare(TfdsData(), EVERYTHING)(whole, None)
    assert seen.keys() == whole.keys()
    np.testing.assert_allclose(seen["image"], (np.asarray(whole["image"], np.float32) / 255 - 0.5) / 0.5, atol=1e-6)


def test_everything_together_is_a_function_of_keys_and_batch():
    whole = {"image": jnp.asarray(images(8, 32, 32), jnp.uint8), "label": jnp.arange(8)}
    prepare = jax.jit(make_prepare(TfdsData(), EVERYTHING))
    first, again, other = prepare(whole, keys(8)), prepare(whole, keys(8)), prepare(whole, keys(8, seed=1))
    np.testing.assert_array_equal(first["image"], again["image"])
    assert np.isfinite(first["image"]).all()
    assert (np.asarray(first["image"]) != np.asarray(other["image"])).any(axis=(1, 2, 3)).all()
