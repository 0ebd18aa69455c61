"""Which query answers for which target: the exact assignment of least cost, inside the jitted step.

Targets first bid for queries, all at once (Bertsekas, doi 10.1007/BF02186476); who gets none then searches along the
shortest augmenting path (Jonker and Volgenant, doi 10.1007/BF02278710). The examples of a batch share the loops, and each
goes on with its own next target while others still search. Why not on the host: docs/decisions/0014.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

NONE = -1
ROUNDS = 4  # of bidding; further ones rarely save as much as they cost
FAR = 1e30  # sums of so much and less stay finite, and so every search ends


def match(cost: Float[Array, "B Q M"], valid: Bool[Array, "B M"]) -> Int[Array, "B M"]:
    """For each target its query, no query twice, the sum of costs as small as can be; -1 for targets that aren't valid.

    There must be as many queries as targets. A cost that is NaN or infinite is taken only where there is no other way. No
    gradient passes.
    """
    if cost.shape[1] < cost.shape[2]:
        raise ValueError(f"{cost.shape[2]} targets can't have a query each of {cost.shape[1]}")
    if cost.shape[2] == 0:
        return jnp.zeros(valid.shape, jnp.int32)
    return jax.vmap(_assign)(jax.lax.stop_gradient(cost).mT.astype(jnp.float32), valid)


class Market(NamedTuple):
    """The assignment so far, with prices that prove that no other of the same targets is cheaper.

    Throughout, a target's query is among its cheapest by cost less price, and a query without a target has the price 0; a
    query in demand has a negative one. So targets need no potentials of their own.
    """

    owner: Int[Array, "Q"]  # each query's target
    price: Float[Array, "Q"]
    free: Bool[Array, "M"]  # targets that wait for a query


class Search(NamedTuple):
    """The shortest path from a free target to a query without one, as far as it is known."""

    owner: Int[Array, "Q"]
    price: Float[Array, "Q"]
    done: Int[Array, ""]  # searches that are over
    length: Float[Array, "Q"]  # of the path to each query
    before: Int[Array, "Q"]  # the query that comes before it on that path, NONE if it is the first
    seen: Bool[Array, "Q"]  # its path is final
    query: Int[Array, ""]  # where the search, or the way back, stands
    back: Bool[Array, ""]  # on the way back each query of the path passes to the target of the one before


def _assign(cost: Float[Array, "M Q"], valid: Bool[Array, "M"]) -> Int[Array, "M"]:
    M, Q = cost.shape
    cost, nobody = _finite(cost), jnp.full(Q, NONE)
    market = Market(nobody, jnp.zeros(Q), valid)
    market = jax.lax.fori_loop(0, ROUNDS, lambda _, m: _bid(m, cost, valid), market)
    turns, waiting = jnp.argsort(~market.free), market.free.sum()
    owner, price, _ = market
    search = Search(owner, price, jnp.array(0), jnp.full(Q, jnp.inf), nobody, nobody >= 0, jnp.array(NONE), jnp.array(False))

    def step(s: Search) -> Search:
        target = turns[s.done]
        return jax.lax.cond(s.back, lambda s: _pass_on(s, target), lambda s: _look(s, target, cost), s)

    owner = jax.lax.while_loop(lambda s: s.done < waiting, step, search).owner
    holds = owner == jnp.arange(M)[:, None]
    return jnp.where(holds.any(axis=1), jnp.argmax(holds, axis=1), NONE)


def _finite(cost: Float[Array, "M Q"]) -> Float[Array, "M Q"]:
    """Costs above each target's least, and for what is not finite more than any assignment without it costs."""
    fine = jnp.isfinite(cost)
    least = jnp.min(cost, axis=1, keepdims=True, where=fine, initial=jnp.inf)
    above = jnp.minimum(jnp.where(fine, cost - jnp.where(jnp.isfinite(least), least, 0), 0), FAR / len(cost) ** 2)
    return jnp.where(fine, above, 1 + len(cost) * above.max())


def _bid(m: Market, cost: Float[Array, "M Q"], valid: Bool[Array, "M"]) -> Market:
    """Each free target offers for its cheapest query what this is better than its second; the highest offer gets it."""
    M, Q = cost.shape
    worth = cost - m.price
    wish = jnp.argmin(worth, axis=1)[:, None] == jnp.arange(Q)
    second = jnp.min(worth, axis=1, where=~wish, initial=jnp.inf) if Q > 1 else worth[:, 0]
    offer = jnp.where(wish & m.free[:, None], (second - worth.min(axis=1))[:, None], -1)
    best = offer.max(axis=0)
    owner = jnp.where(best >= 0, jnp.argmax(offer, axis=0), m.owner)
    free = valid & ~(owner == jnp.arange(M)[:, None]).any(axis=1)
    return Market(owner, m.price - jnp.maximum(best, 0), free)


def _look(s: Search, target: Int[Array, ""], cost: Float[Array, "M Q"]) -> Search:
    """Go on from the target of the query reached last to the nearest query that isn't reached yet: Dijkstra's step."""
    first = s.query == NONE
    worth = cost[jnp.where(first, target, s.owner[s.query])] - s.price
    reached = worth + jnp.where(first, 0, s.length[s.query] - worth[s.query])
    shorter = ~s.seen & (reached < s.length)
    length, before = jnp.where(shorter, reached, s.length), jnp.where(shorter, s.query, s.before)
    query = jnp.argmin(jnp.where(s.seen, jnp.inf, length))
    seen = s.seen | (jnp.arange(len(length)) == query)
    back = s.owner[query] == NONE
    price = jnp.where(seen & back, s.price + jnp.minimum(length - length[query], 0), s.price)
    return s._replace(price=price, length=length, before=before, seen=seen, query=query, back=back)


def _pass_on(s: Search, target: Int[Array, ""]) -> Search:
    """One query of the path to its new target; with the path's first one the search is over."""
    before = s.before[s.query]
    over = before == NONE
    owner = jnp.where(jnp.arange(len(s.owner)) == s.query, jnp.where(over, target, s.owner[before]), s.owner)
    length, seen = jnp.where(over, jnp.inf, s.length), s.seen & ~over
    return s._replace(owner=owner, done=s.done + over, length=length, seen=seen, query=before, back=~over)
