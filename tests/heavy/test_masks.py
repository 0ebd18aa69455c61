"""EoMT's loss and gradient on eight devices as on one, and a small model that learns a batch by heart."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.tasks.test_masks import head, keys, panoptic, scenes, small, targets
from vit.models.vit import merge, split
from vit.tasks.masks import eomt_loss, semantic
from vit.training.sharding import make_mesh, place


def test_the_same_loss_and_gradient_on_eight_devices():
    graph, params = split(small("panoptic", depth=3, blocks=2))
    many = keys(8)

    @jax.jit
    def step(params, data, keys, progress):
        def total(params):
            return eomt_loss(merge(graph, params), {**data, "progress": progress}, head("panoptic"), 3, keys).mean()

        return jax.value_and_grad(total)(params)

    data = scenes(8)
    wanted = step(params, jax.tree.map(jnp.asarray, data), many, jnp.asarray(0.4))
    split_up = place({**data, "keys": np.asarray(jax.random.key_data(many))}, make_mesh())
    got = step(params, split_up, jax.random.wrap_key_data(split_up.pop("keys")), jnp.asarray(0.4))
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5)
    for path, x in wanted[1].items():
        np.testing.assert_allclose(got[1][path], x, rtol=1e-3, atol=1e-4 * float(jnp.abs(x).max()) + 1e-7, err_msg=path)
        assert path.startswith("cls_token") or jnp.abs(x).max() > 0, path


def test_a_small_model_learns_a_batch_by_heart():
    graph, params = split(small("panoptic"))
    data = jax.tree.map(jnp.asarray, scenes(2))
    optimizer, steps = optax.adam(3e-3), 150

    @jax.jit
    def step(carry, i):
        params, state = carry
        inner = {**data, "progress": i / steps}
        folded = jax.vmap(lambda key: jax.random.fold_in(key, i))(keys())
        value, gradient = jax.value_and_grad(
            lambda p: eomt_loss(merge(graph, p), inner, head("panoptic", points=64, blocks=1), 3, folded).mean()
        )(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), value

    (params, _), values = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(steps)))((params, optimizer.init(params)))
    assert values[-10:].mean() < 0.3 * values[0]
    model = merge(graph, params)
    result, _ = jax.jit(model)(data["image"])
    result["masks"] = jax.image.resize(result["masks"], (2, 6, 16, 24), "linear", antialias=False)
    named = semantic(result).argmax(axis=-1)
    assert (named == data["label"]).mean() > 0.9
    one = panoptic(jax.tree.map(lambda x: x[0], result), head("panoptic"), stuff=(0, 1))
    assert int(one["kept"].sum()) == int(targets(data, head("panoptic"), 3).valid[0].sum())
