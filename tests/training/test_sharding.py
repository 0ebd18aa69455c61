"""The same step on one device and on eight: agreement, what lives where, checkpoints, bad numbers on one of them."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from vit.config import AdamW, AugmentConfig, Config, ScheduleConfig, ViTConfig
from vit.data.augment import make_prepare
from vit.data.batches import Batches
from vit.data.sources import describe, open_source
from vit.errors import UserError
from vit.models.layers import prime_factors
from vit.tasks import make_task
from vit.training.checkpoint import Checkpoints
from vit.training.log import Log, read_metrics
from vit.training.loop import Loop
from vit.training.sharding import check_batch_size, collect, distribute, make_mesh, place, spec, state_shardings
from vit.training.state import init_state, make_train_step, state_shapes
from vit.training.stop import Stop

CONFIG = Config(
    steps=100,
    batch_size=64,
    optim=AdamW(lr=1e-3),
    schedule=ScheduleConfig(warmup=10),
    augment=AugmentConfig(rotate=12, zoom=0.1),
    model=ViTConfig(patch=2, width=32, depth=2, heads=4, mlp=64, drop_path=0.1, dropout=0.1, pool="mean"),
)
SOURCE = open_source(CONFIG.data, "train")


def mesh_of(devices, tensor=1):
    return make_mesh(jax.devices()[:devices], tensor)


def begin(config, mesh):
    """A fresh state that lives on the mesh, and shapes that say where."""
    task = make_task(config.task, config.model, describe(SOURCE))
    like = state_shardings(state_shapes(task, config), mesh, config.fsdp)
    return task, like, distribute(init_state(task.build, config), like)


@functools.cache
def train_step(config, devices):
    """Compiled once."""
    task, like, _ = begin(config, mesh_of(devices, config.tensor))
    return make_train_step(task, make_prepare(config.data, config.augment), config, like)


def train(config, devices, steps=100):
    """Losses of the steps, and the state after them."""
    mesh = mesh_of(devices, config.tensor)
    _, like, state = begin(config, mesh)
    step, losses = train_step(config, devices), []
    for batch in itertools.islice(Batches(SOURCE, config.seed, config.batch_size).starting_at(0), steps):
        state, metrics = step(state, place(batch, mesh))
        losses.append(float(metrics["loss"]))
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, like)
    return np.array(losses), state


@pytest.fixture(scope="module")
def on_one():
    return train(CONFIG, 1)


def without_key_biases(params):
    """Attention doesn't depend on them: their gradient is rounding, which AdamW blows up."""
    D = CONFIG.model.width
    return {path: np.delete(x, slice(D, 2 * D)) if path.endswith("qkv/bias") else x for path, x in params.items()}


@pytest.mark.parametrize("where", [{}, {"fsdp": True}, {"fsdp": True, "tensor": 2}], ids=str)
def test_a_hundred_steps_on_eight_devices_are_those_on_one(on_one, where):
    losses, state = train(dataclasses.replace(CONFIG, **where), 8)
    np.testing.assert_allclose(losses, on_one[0], rtol=1e-5)
    got, wanted = (without_key_biases(collect(s["params"])) for s in (state, on_one[1]))
    difference = np.sqrt(sum(np.square(got[path] - wanted[path]).sum() for path in wanted))
    assert difference <= 1e-5 * np.sqrt(sum(np.square(x).sum() for x in wanted.values()))
    assert losses[-1] < 0.95 * losses[0]


def test_sides_that_the_devices_do_not_divide_are_cut_by_prime_factors_and_train_as_on_one():
    config = dataclasses.replace(CONFIG, fsdp=True, model=dataclasses.replace(CONFIG.model, width=36, depth=1, mlp=60))
    (losses, state), (wanted, _) = (train(config, devices, steps=20) for devices in (8, 1))
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    kernel = state["params"]["blocks/0/attn/qkv/kernel"]
    assert kernel.shape == (36, 108)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(18, 27)}


def test_two_runs_of_the_same_seed_are_bitwise_equal(on_one):
    losses, state = train(CONFIG, 1)
    np.testing.assert_array_equal(losses, on_one[0])
    jax.tree.map(np.testing.assert_array_equal, collect(state), collect(on_one[1]))


def test_fsdp_holds_an_eighth_of_the_matrices_on_each_device_and_gathers_them():
    config = dataclasses.replace(CONFIG, fsdp=True)
    task, like, state = begin(config, mesh_of(8))
    kernel = state["params"]["blocks/0/mlp/fc1/kernel"]
    assert kernel.shape == (32, 64)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(32, 8)}
    assert state["opt"][1].mu["blocks/0/mlp/fc1/kernel"].sharding == kernel.sharding
    here = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    assert here < 0.2 * sum(x.nbytes for x in jax.tree.leaves(state))
    batch = place(next(Batches(SOURCE, 0, 64).starting_at(0)), mesh_of(8))
    program = make_train_step(task, make_prepare(config.data, config.augment), config, like).lower(like, batch).compile()
    assert re.search(r"f32\[32,64\].* all-gather\(", program.as_text())


def test_what_fsdp_cuts():
    mesh, whole = mesh_of(8), ("data0", "data1", "data2")
    cuts = {(64, 192): (None, whole), (192, 64): (whole, None), (10, 64): (None, whole), (64, 10): (whole, None)}
    cuts |= {(1, 17, 24): (None, None, whole), (12, 8): (None, whole), (64,): (), (): (), (7, 9): ()}
    # No side that eight divides: by twos.
    cuts |= {(12, 36): ("data2", whole[:2]), (6, 9): ("data0", None), (2, 2, 3, 6): ("data1", "data2", None, "data0")}
    assert {shape: tuple(spec("a/kernel", shape, mesh, True)) for shape in cuts} == cuts
    assert {tuple(spec("a/kernel", shape, mesh, False)) for shape in cuts} == {()}


@given(shape=st.lists(st.integers(1, 60), min_size=2, max_size=4).map(tuple), n=st.sampled_from([2, 3, 4, 6, 8]))
def test_fsdp_leaves_each_device_as_little_as_can_be(shape, n):
    mesh = mesh_of(n)
    part = NamedSharding(mesh, spec("a/kernel", shape, mesh, True)).shard_shape(shape)
    wanted, sizes = n, list(shape)  # each prime factor of n cuts a side once, where one is left that it divides
    for p in prime_factors(n):
        if at := [i for i, size in enumerate(sizes) if size % p == 0]:
            sizes[at[0]], wanted = sizes[at[0]] // p, wanted // p
    assert np.prod(part) * n == np.prod(shape) * wanted


def test_a_batch_that_the_devices_cannot_share():
    check_batch_size(64, 2, mesh_of(8))
    with pytest.raises(UserError, match="--batch-size 72 can't be shared by 8 devices"):
        check_batch_size(72, 2, mesh_of(8))


@pytest.mark.parametrize("fsdp", [False, True])
def test_a_checkpoint_of_eight_devices_has_the_same_bytes_on_fewer(tmp_path, fsdp):
    config = dataclasses.replace(CONFIG, fsdp=fsdp)
    _, saved = train(config, 8, steps=2)
    wanted = collect(saved)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(2, saved, {"scores": {}})
        checkpoints.wait()
        for devices in (1, 2, 4, 8):
            _, like, _ = begin(config, mesh_of(devices))
            restored = checkpoints.restore(2, like)
            assert {len(x.sharding.device_set) for x in jax.tree.leaves(restored)} == {devices}
            assert all(
                a.tobytes() == b.tobytes() for a, b in zip(*map(jax.tree.leaves, (collect(restored), wanted)), strict=True)
            )


class Poisoned:
    """The task, but for examples with these ids, each of which goes with a place, something is not finite there."""

    def __init__(self, task, ids):
        self.task, self.ids = task, {where: [i for i in ids if ids[i] == where] for where in ("input", "loss", "gradient")}
        self.build, self.graph, self.headline, self.class_names = task.build, task.graph, task.headline, task.class_names

    def loss(self, model, batch, keys):
        bad = {where: jnp.isin(batch["id"], jnp.asarray(ids, int)) for where, ids in self.ids.items()}
        batch = {**batch, "image": jnp.where(bad["input"][:, None, None, None], jnp.nan, batch["image"])}
        losses = self.task.loss(model, batch, keys)
        losses = jnp.where(bad["loss"], jnp.inf, losses)
        # The gradient is that of √x at 0: the loss itself stays finite.
        root = jnp.sqrt(jnp.where(bad["gradient"], 0 * model.head.kernel[...].sum(), 1))
        return losses + root - jnp.where(bad["gradient"], 0, 1)

    def score(self, figures):
        return (figures["top1"],)


def run_poisoned(folder, bad_batches, steps=16):
    """A run on eight devices, in which one device meets an example that is bad at a place in each of these batches."""
    every = {"steps": steps, "save_every": 4, "eval_every": 100, "log_every": 4}
    config = dataclasses.replace(CONFIG, workdir=str(folder), model=dataclasses.replace(CONFIG.model, depth=1), **every)
    mesh, batches = mesh_of(8), Batches(SOURCE, config.seed, config.batch_size)
    first = {index: int(batches.places(index)[5 * 8]) for index in bad_batches}  # the sixth device's first
    ids = {int(SOURCE[place]["id"]): bad_batches[index] for index, place in first.items()}
    task, like, state = begin(config, mesh)
    poisoned = Poisoned(task, ids)
    step = make_train_step(poisoned, make_prepare(config.data, config.augment), config, like)
    meta, evaluate = {"scores": {}}, lambda state: {"top1": 0.5}
    with Checkpoints(folder / "checkpoints") as checkpoints, Log(folder, 0, steps) as log:
        return Loop(config, state, step, batches, evaluate, poisoned, mesh, checkpoints, log, Stop(), meta).run()


def test_a_bad_number_on_one_device_skips_the_update_on_all(tmp_path):
    state = run_poisoned(tmp_path, {2: "loss", 5: "gradient", 7: "input", 9: "input", 10: "loss", 11: "gradient"})
    counters = {name: int(state[name]) for name in ("step", "skipped", "rollbacks", "offset")}
    assert counters == {"step": 16, "skipped": 6, "rollbacks": 1, "offset": 4}  # back from 12 to 8, past four batches
    for x in jax.tree.leaves(state):
        copies = [np.asarray(shard.data) for shard in x.addressable_shards]
        assert len(copies) == 8
        assert np.isfinite(copies[0]).all()
        assert all(np.array_equal(copy, copies[0]) for copy in copies)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert sum(r["skipped"] for r in rows if r["split"] == "train") == 6
    assert [(r["step"], r["rolled_back_to"]) for r in rows if r["split"] == "event"] == [(12, 8)]


def test_three_ways_back_on_eight_devices_end_the_run(tmp_path):
    with pytest.raises(UserError, match=r"training diverged: 3 updates in a row were not finite, 3 times"):
        run_poisoned(tmp_path, dict.fromkeys(range(5, 20), "gradient"))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.newest().step == 4
