"""Matching queries to targets: `vit.models.matching` against what else could do it.

    uv run python benchmarks/matching.py [--rounds 20]

Matches random costs, jitted, and prints JSON: median milliseconds a batch of `match`, of optax's Hungarian algorithm under
`vmap`, of scipy on the host through `jax.pure_callback`, and of scipy alone on an array that is on the host already.
`alike` is how much all targets agree on which queries are cheap: 0 for independent costs, 1 where the query decides as much
as the pair does. `difference` is the largest of `match`'s cost from scipy's.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import linear_sum_assignment

from vit.models.matching import match

SIZES = (8, 100, 20), (2, 200, 50), (8, 300, 100)


def by_scipy(cost: np.ndarray) -> np.ndarray:
    """(B, Q, M) → (B, M)."""
    return np.stack([linear_sum_assignment(x.T)[1] for x in np.asarray(cost)]).astype(np.int32)


def on_the_host(cost: jax.Array) -> jax.Array:
    """scipy's answer inside a jitted program."""
    return jax.pure_callback(by_scipy, jax.ShapeDtypeStruct((cost.shape[0], cost.shape[2]), jnp.int32), cost)


def by_optax(cost: jax.Array) -> jax.Array:
    """optax's, example by example."""
    return jax.vmap(optax.assignment.hungarian_algorithm)(cost)[0]


def milliseconds(way: Callable[[Any], object], cost: Any, rounds: int) -> float:
    """Median of a call, after one that compiles."""
    jax.block_until_ready(way(cost))
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        jax.block_until_ready(way(cost))
        times.append(1000 * (time.perf_counter() - begin))
    return round(statistics.median(times), 2)


def main() -> None:
    """Print a line for each size and likeness."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds, rng = parser.parse_args().rounds, np.random.default_rng(0)
    ways = {"match": lambda c: match(c, jnp.ones((len(c), c.shape[2]), bool)), "optax": by_optax, "callback": on_the_host}
    for B, Q, M in SIZES:
        for alike in (0, 0.3, 1):
            cost = (rng.random((B, Q, M)) + alike * rng.random((B, Q, 1))).astype(np.float32)
            here, figures = jax.device_put(cost), {"sizes": [B, Q, M], "alike": alike, "device": jax.devices()[0].device_kind}
            for name, way in ways.items():
                figures[name] = milliseconds(jax.jit(way), here, rounds)
            figures["scipy"] = milliseconds(by_scipy, cost, rounds)
            found, best = (np.take_along_axis(cost, x[:, None], 1) for x in (np.asarray(ways["match"](here)), by_scipy(cost)))
            figures["difference"] = float(np.abs(found.sum((1, 2), np.float64) - best.sum((1, 2), np.float64)).max())
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
