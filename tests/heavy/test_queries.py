"""DETR's loss on eight devices as on one, and a small model that learns a batch by heart."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.tasks.test_queries import SMALL, scenes, small, total
from vit.config import NOBODY
from vit.models.boxes import iou
from vit.models.vit import merge
from vit.tasks.queries import query_outputs
from vit.training.sharding import make_mesh, place


def test_the_same_loss_on_eight_devices():
    params, keys, data, run = small()[1], jax.random.split(jax.random.key(0), 8), scenes(8), jax.jit(total)
    wanted = run(params, jax.tree.map(jnp.asarray, data), keys)
    split_up = place({**data, "keys": np.asarray(jax.random.key_data(keys))}, make_mesh())
    got = run(params, split_up, jax.random.wrap_key_data(split_up.pop("keys")))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_a_small_model_learns_a_batch_by_heart():
    graph, params = small()
    data, optimizer = jax.tree.map(jnp.asarray, scenes(8)), optax.adam(2e-3)

    @jax.jit
    def step(params, state, i):
        value, slope = jax.value_and_grad(total)(params, data, jax.random.split(jax.random.key(i), 8))
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(params, updates), state, value, slope

    state, first = optimizer.init(params), None
    for i in range(250):
        params, state, value, slope = step(params, state, i)
        first = value if first is None else first
    assert value < 0.5 * first
    for path, x in slope.items():
        assert path.startswith("cls_token") or jnp.abs(x).max() > 0, path
    found = jax.jit(lambda x: query_outputs(merge(graph, params)(x)[0], SMALL, 4))(data["image"])
    right = 0
    for i, label in enumerate(data["label"]):
        count = int((label != NOBODY).sum())  # as many of the best as there are true ones
        overlap = iou(found["boxes"][i, :count], data["boxes"][i, :count])
        right += int(((overlap > 0.5) & (found["kinds"][i, :count, None] == label[:count])).any(axis=1).sum())
    assert right >= 0.9 * int((data["label"] != NOBODY).sum())
    assert (found["scores"][:, :-1] >= found["scores"][:, 1:]).all()
