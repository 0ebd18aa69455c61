"""Rotary positions are relative, PyTorch's cubic interpolation is PyTorch's."""

import jax.numpy as jnp
import numpy as np
import pytest

from vit.models import positions


@pytest.mark.parametrize(("kind", "step"), [("dinov3", 2 / 6), ("eva", 16 / 6)])
def test_attention_after_a_rotation_depends_on_the_distance_alone(kind, step):
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 16)).astype(np.float32)
    rotate = positions.rotation(kind, (6, 6), 2, 16)
    every = np.broadcast_to(q, (38, 16)), np.broadcast_to(k, (38, 16))
    q2, k2 = (np.asarray(rotate(jnp.asarray(z))) for z in every)
    np.testing.assert_array_equal(q2[:2], every[0][:2])  # tokens without a place
    scores = (q2[2:] @ k2[2:].T).reshape(6, 6, 6, 6)
    for dy, dx in ((0, 0), (1, 0), (0, 2), (3, 1)):
        same = [scores[y, x, y + dy, x + dx] for y in range(6 - dy) for x in range(6 - dx)]
        np.testing.assert_allclose(same, same[0], rtol=1e-4, atol=1e-4)
    # The first pair of rows' values turns fastest: by the distance in the family's own unit.
    angle = step * (2 * np.pi if kind == "dinov3" else 1)
    pair = (0, 8) if kind == "dinov3" else (0, 1)
    a, b = q2.reshape(38, 16)[2, list(pair)], q2.reshape(38, 16)[2 + 6, list(pair)]
    turned = np.array([a[0] * np.cos(angle) - a[1] * np.sin(angle), a[0] * np.sin(angle) + a[1] * np.cos(angle)])
    np.testing.assert_allclose(b, turned, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("old", "new"), [(4, 7), (7, 4), (5, 5), (3, 12)])
def test_pytorchs_cubic_keeps_constants_and_lines_and_its_own_kernel(old, new):
    matrix = positions._cubic_torch(old, new)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    if old == new:
        np.testing.assert_allclose(matrix, np.eye(old), atol=1e-12)


def test_pytorchs_cubic_at_half_a_place():
    # Keys' kernel with a = -0.75 half-way between two places (with a = -0.5: -0.0625, 0.5625).
    row = positions._cubic_torch(8, 4)[1]  # its centre is at 2.5
    np.testing.assert_allclose(row[1:5], [-0.09375, 0.59375, 0.59375, -0.09375])
