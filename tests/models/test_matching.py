"""Matching: as cheap as scipy's, on any devices, inside what a train step is made of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from vit.models.matching import match
from vit.training.sharding import make_mesh, place

run = jax.jit(match)


def price(cost, query):
    """What an assignment (M,) of the columns costs, summed exactly."""
    return cost[query, np.arange(len(query))].sum(dtype=np.float64)


def best(cost):
    """scipy's least cost."""
    return cost[linear_sum_assignment(cost)].sum(dtype=np.float64)


def costs(seed, B, Q, M, alike, steps=0):
    """Random costs; `alike` is how much all targets agree on queries, `steps` makes many of them equal."""
    rng = np.random.default_rng(seed)
    cost = rng.standard_normal((B, Q, M)) + alike * rng.standard_normal((B, Q, 1)) + rng.standard_normal((B, 1, M))
    return (np.round(cost * steps) if steps else cost).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**31),
    st.sampled_from([(1, 1), (2, 1), (5, 5), (7, 3), (20, 20), (40, 13)]),
    st.sampled_from([0.0, 1.0, 30.0]),
    st.sampled_from([0, 1, 3]),
)
def test_no_assignment_is_cheaper(seed, sizes, alike, steps):
    cost = costs(seed, 3, *sizes, alike, steps)
    valid = np.random.default_rng(seed).random((3, sizes[1])) < 0.8
    got = np.asarray(run(cost, valid))
    for c, v, q in zip(cost, valid, got, strict=True):
        assert (q[~v] == -1).all()
        assert len(set(q[v])) == v.sum()
        assert ((q[v] >= 0) & (q[v] < sizes[0])).all()
        assert price(c[:, v], q[v]) == pytest.approx(best(c[:, v]), rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("sizes", [(8, 100, 20), (2, 200, 50), (4, 300, 100)])
def test_sizes_of_training(sizes):
    cost = costs(0, *sizes, alike=0.3)
    got = np.asarray(run(cost, np.ones((sizes[0], sizes[2]), bool)))
    np.testing.assert_allclose([price(c, q) for c, q in zip(cost, got, strict=True)], list(map(best, cost)), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_a_cost_that_is_no_number_is_taken_only_where_there_is_no_other_way(bad):
    rng = np.random.default_rng(0)
    cost = costs(0, 20, 12, 6, alike=1)
    spoilt = np.where(rng.random(cost.shape) < 0.4, np.float32(bad), cost)
    spoilt[0, :, 2] = bad  # a target for which there is none
    got = np.asarray(run(spoilt, np.ones((20, 6), bool)))
    for c, q in zip(spoilt, got, strict=True):
        assert len(set(q)) == 6
        usual = np.where(np.isfinite(c) & (c < 1e38), c, 1e4)  # as transformers, who take the largest number there is
        assert price(usual, q) == pytest.approx(best(usual), abs=1e-3)


def test_nothing_to_match():
    assert run(np.zeros((2, 3, 0), np.float32), np.zeros((2, 0), bool)).shape == (2, 0)
    np.testing.assert_array_equal(run(costs(0, 2, 4, 3, 0), np.zeros((2, 3), bool)), np.full((2, 3), -1))
    np.testing.assert_array_equal(run(np.full((1, 4, 3), np.nan, np.float32), np.zeros((1, 3), bool)), [[-1] * 3])
    with pytest.raises(ValueError, match="4 targets can't have a query each of 3"):
        match(jnp.zeros((1, 3, 4)), jnp.ones((1, 4), bool))


def test_in_the_step_of_eight_devices_with_accumulation():
    """The gradient of a loss of matched pairs, scanned over microbatches, the state donated and the batch split."""
    batch = {"x": costs(0, 32, 10, 6, alike=1), "valid": np.random.default_rng(1).random((32, 6)) < 0.7}

    def loss(w, x, valid):
        cost = x * w[:, None]
        query = match(cost, valid)
        picked = jnp.take_along_axis(cost, jnp.maximum(query, 0)[:, None], axis=1)[:, 0]
        return jnp.sum(jnp.where(valid, picked**2, 0)), query

    @functools.partial(jax.jit, donate_argnums=0)
    def step(w, batch):
        parts = jax.tree.map(lambda x: x.reshape(-1, 2, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(total, part):
            (_, query), gradient = jax.value_and_grad(loss, has_aux=True)(w, part["x"], part["valid"])
            return total + gradient, query

        gradient, query = jax.lax.scan(add, jnp.zeros_like(w), parts)
        return w - 0.1 * gradient, query

    w, queries = step(jnp.ones(10), place(batch, make_mesh()))
    assert len(queries.sharding.device_set) == 8
    wanted, total = run(batch["x"], batch["valid"]), np.zeros(10)
    np.testing.assert_array_equal(queries.swapaxes(0, 1).reshape(32, 6), wanted)
    for x, valid, query in zip(batch["x"], batch["valid"], np.asarray(wanted), strict=True):
        np.add.at(total, query[valid], 2 * x[query[valid], np.flatnonzero(valid)] ** 2)
    np.testing.assert_allclose(w, 1 - 0.1 * total, rtol=1e-4)


def test_no_gradient_passes():
    gradient = jax.grad(lambda c: jnp.sum(match(c, jnp.ones((2, 3), bool)) * jnp.ones(())))(jnp.asarray(costs(0, 2, 4, 3, 0)))
    assert not gradient.any()
