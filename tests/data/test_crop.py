"""Crops while reading, against Pillow and the definition of their distribution."""

import random

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from vit.data.crop import as_evaluated, inception_crop, shifted_crop


def picture(h, w, c=3):
    y, x = np.mgrid[:h, :w]
    return np.stack([(x * 255 // max(1, w - 1)), (y * 255 // max(1, h - 1)), (x + y) % 256], -1)[..., :c].astype(np.uint8)


@pytest.mark.parametrize("shape", [(60, 80), (97, 41), (32, 32), (1, 50), (50, 1), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_crops_are_squares_of_the_size_asked_for(shape, channels):
    image = picture(*shape, channels)
    before = image.copy()
    for seed in range(20):
        assert inception_crop(image, 24, random.Random(seed)).shape == (24, 24, channels)
    assert as_evaluated(image, (24, 24), channels).shape == (24, 24, channels)
    np.testing.assert_array_equal(image, before)


def test_a_shifted_crop_is_evaluations_from_any_place():
    image, halves = picture(60, 90), random.Random(0)
    halves.random = lambda: 0.5
    np.testing.assert_array_equal(shifted_crop(image, 32, 0.8, halves), as_evaluated(image, (32, 32), 3, 0.8))
    # Red grows with x and green with y.
    crops = [shifted_crop(picture(256, 256), 64, 0.75, random.Random(seed)).astype(float) for seed in range(300)]
    spans = [crop[32, -1, 0] - crop[32, 0, 0] for crop in crops]
    np.testing.assert_allclose(spans, 0.75 * 255 * 63 / 64, atol=2)
    for starts in ([crop[32, 0, 0] for crop in crops], [crop[0, 32, 1] for crop in crops]):
        assert scipy.stats.kstest(starts, scipy.stats.uniform(0, 0.25 * 255).cdf).pvalue > 1e-3


def test_parts_have_the_areas_and_shapes_of_the_paper():
    # Red grows with x and green with y: their spans tell the part's sides.
    image, areas, ratios = picture(256, 256), [], []
    for seed in range(500):
        crop = inception_crop(image, 64, random.Random(seed)).astype(float)
        w, h = (crop[32, -1, 0] - crop[32, 0, 0]) * 64 / 63, (crop[-1, 32, 1] - crop[0, 32, 1]) * 64 / 63
        areas.append(w * h / 256**2)
        ratios.append(w / h)
    assert 0.03 < min(areas) < 0.1
    assert max(areas) > 0.9
    assert 0.70 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.43
    # A part over 75 % may not fit and is drawn anew: below, areas are uniform.
    low = [a for a in areas if 0.08 < a < 0.6]
    assert scipy.stats.kstest(low, scipy.stats.uniform(0.08, 0.52).cdf).pvalue > 0.001


@pytest.mark.parametrize("shape", [(320, 400), (512, 256)])
def test_the_central_crop_is_resize_256_crop_224(shape):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (20, 20, 3)).astype(np.uint8))
    image = small.resize(shape[::-1], Image.Resampling.BICUBIC)
    scale = 256 / min(shape)
    resized = image.resize((round(shape[1] * scale), round(shape[0] * scale)), Image.Resampling.BICUBIC)
    x, y = (resized.width - 224) // 2, (resized.height - 224) // 2
    wanted = np.asarray(resized.crop((x, y, x + 224, y + 224)), float)
    assert np.abs(as_evaluated(np.asarray(image), (224, 224)) - wanted).mean() < 1


def test_the_evaluated_part_has_the_shape_asked_for():
    image = picture(120, 200)
    np.testing.assert_array_equal(as_evaluated(image, (120, 200), share=1.0), image)
    seen = as_evaluated(image, (60, 30), share=0.5).astype(float)  # 60 high, 30 wide, in the middle
    np.testing.assert_allclose(seen, image[30:90, 85:115], atol=1)
    assert as_evaluated(image, (8, 8), channels=1).shape == (8, 8, 1)
    grey = as_evaluated(image, (120, 200), 1, 1.0)[..., 0]
    np.testing.assert_allclose(grey, image @ [0.299, 0.587, 0.114], atol=1)
    np.testing.assert_array_equal(as_evaluated(grey[..., None], (120, 200), 3, 1.0), np.repeat(grey[..., None], 3, 2))


def test_a_large_image_shrunk_in_two_steps_is_the_one_shrunk_in_one():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)).resize((1600, 1200), Image.Resampling.BICUBIC)
    once = np.asarray(image.resize((96, 96), Image.Resampling.BICUBIC, (200, 0, 1400, 1200)), float)
    assert np.abs(as_evaluated(np.asarray(image), (96, 96), share=1.0) - once).mean() < 1
