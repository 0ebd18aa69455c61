"""The train step: accumulation, bad updates, randomness, moving average."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit.config import SGD, AdamW, AugmentConfig, Config, Muon, ScheduleConfig, ViTConfig
from vit.data.augment import make_prepare
from vit.data.sources import Digits, describe
from vit.tasks import make_task
from vit.training.state import evaluated, example_keys, init_state, make_eval_step, make_train_step

SOURCE = Digits("train")
CONFIG = Config(
    steps=20,
    batch_size=24,
    model=ViTConfig(patch=2, width=16, depth=2, heads=2, mlp=32),
    optim=SGD(lr=1.0, momentum=0.0),
    schedule=ScheduleConfig(decay="constant"),
    clip=0.0,
)
NOISY = dataclasses.replace(
    CONFIG,
    augment=AugmentConfig(rotate=20, shift=0.1),
    model=dataclasses.replace(CONFIG.model, dropout=0.1, drop_path=0.2),
)


def parts(config):
    task = make_task(config.task, config.model, describe(SOURCE))
    return task, make_prepare(config.data, config.augment)


def fresh(config):
    state = init_state(parts(config)[0].build, config)
    # The head starts at zero, which hides the gradients of all before it.
    head = 0.3 * jax.random.normal(jax.random.key(9), state["params"]["head/kernel"].shape)
    return {**state, "params": {**state["params"], "head/kernel": head}}


def batch(config=CONFIG, start=0):
    examples = [SOURCE[start + i] for i in range(config.batch_size)]
    out = {name: jnp.asarray(np.stack([e[name] for e in examples])) for name in ("image", "label", "id")}
    return {**out, "mask": jnp.ones(config.batch_size, bool)}


@functools.cache
def train_step(config):
    """Compiled once."""
    return make_train_step(*parts(config), config)


@functools.cache
def gradient(config):
    """Of the batch above."""
    return gradient_of(config, batch(config))


def gradient_of(config, the_batch):
    """One SGD step of size 1 and no momentum: the difference of the parameters is the gradient."""
    step, before = train_step(config), fresh(config)
    params = {name: np.asarray(x) for name, x in before["params"].items()}
    after, metrics = step(before, the_batch)
    return {name: params[name] - np.asarray(x) for name, x in after["params"].items()}, metrics


def distance(a, b):
    norm = np.sqrt(sum((x.astype(np.float64) ** 2).sum() for x in a.values()))
    return np.sqrt(sum(((a[n].astype(np.float64) - b[n]) ** 2).sum() for n in a)) / norm


@pytest.mark.parametrize(("config", "accumulate"), [(CONFIG, 2), (NOISY, 3), (NOISY, 8)], ids=["plain 2", "noisy 3", "noisy 8"])
def test_accumulated_gradient_is_the_large_batchs(config, accumulate):
    # In float64 the two would be equal; what is left is the rounding of sums in another order.
    whole, metrics = gradient(config)
    cut, cut_metrics = gradient(dataclasses.replace(config, accumulate=accumulate))
    assert distance(whole, cut) < 1e-6
    assert float(cut_metrics["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-6)


MIXED = dataclasses.replace(CONFIG, augment=AugmentConfig(mixup=1.0, cutmix=1.0))


def test_microbatches_mix_as_the_whole_batch_does():
    assert distance(gradient(MIXED)[0], gradient(dataclasses.replace(MIXED, accumulate=4))[0]) < 1e-6


def test_shrunk_images_are_those_of_resizing_before():
    task, prepare = parts(CONFIG)

    def after(step, *size):
        return {name: np.asarray(x) for name, x in step(fresh(CONFIG), batch(), *size)[0]["params"].items()}

    def resized(batch, keys):
        image = prepare(batch, keys)["image"]
        # Halving with antialiasing is a triangle over four pixels; SciPy's affine maps have none, so it's written out.
        weights = np.zeros((8, 4))
        for i in range(4):
            for x, weight in zip(range(2 * i - 1, 2 * i + 3), (1, 3, 3, 1), strict=True):
                if 0 <= x < 8:
                    weights[x, i] = weight
        weights /= weights.sum(axis=0)
        return {**batch, "image": jnp.einsum("bhwc,hy,wx->byxc", image, weights, weights)}

    step, before = train_step(CONFIG), make_train_step(task, resized, CONFIG)
    assert distance(after(before), after(step, 4)) < 1e-5
    assert distance(after(step), after(step, 4)) > 1e-3


def test_padding_changes_nothing():
    wide = batch()
    junk = {name: jnp.concatenate([x, x[::-1]]) for name, x in wide.items()}
    junk["mask"] = jnp.concatenate([wide["mask"], ~wide["mask"]])
    assert distance(gradient(NOISY)[0], gradient_of(NOISY, junk)[0]) < 1e-6


def test_the_gradient_is_that_of_finite_differences():
    grads, _ = gradient(CONFIG)
    task, prepare = parts(CONFIG)
    outputs = make_eval_step(task, prepare)
    params, data = fresh(CONFIG)["params"], batch()

    def loss(params):
        labels = np.asarray(data["label"])
        return task.summary(task.metrics(np.asarray(outputs(params, data)), {"label": labels}))["loss"]

    rng = np.random.default_rng(0)
    way = {name: rng.normal(size=x.shape).astype(np.float32) for name, x in params.items()}
    length = np.sqrt(sum((w**2).sum() for w in way.values()))
    way, eps = {name: w / length for name, w in way.items()}, 1e-2
    up, down = ({name: x + s * eps * way[name] for name, x in params.items()} for s in (1, -1))
    slope = (loss(up) - loss(down)) / (2 * eps)
    assert slope == pytest.approx(sum((grads[n] * way[n]).sum() for n in grads), rel=0.01)


def nan_batch():
    """A batch whose gradient isn't finite: an image of NaN reaches the model through `prepare`."""
    return {**batch(), "label": jnp.full(CONFIG.batch_size, 3)}


def poisoned(prepare):
    def prepare_or_poison(data, keys):
        seen = prepare(data, keys)
        bad = jnp.all(data["label"] == 3)
        return {**seen, "image": jnp.where(bad, jnp.nan, seen["image"])}

    return prepare_or_poison


@pytest.mark.parametrize("device", ["cpu", "gpu"])  # where it is a branch, and where it is a choice
def test_an_update_that_is_not_finite_is_skipped_and_counted(device, monkeypatch):
    monkeypatch.setattr("vit.training.state.platform", lambda: device)
    config = dataclasses.replace(CONFIG, optim=AdamW(), ema=0.9)
    task, prepare = parts(config)
    step = make_train_step(task, poisoned(prepare), config)
    state, _ = step(fresh(config), batch())
    before = jax.tree.map(np.asarray, {name: state[name] for name in ("params", "opt", "ema")})

    state, metrics = step(state, nan_batch())
    state, metrics = step(state, nan_batch())
    assert not np.isfinite(metrics["loss"])
    assert int(metrics["streak"]) == int(state["streak"]) == int(state["skipped"]) == 2
    assert int(state["step"]) == 3
    after = {name: state[name] for name in before}
    jax.tree.map(np.testing.assert_array_equal, after, before)

    state, metrics = step(state, batch())
    assert np.isfinite(metrics["loss"])
    assert (int(state["streak"]), int(state["skipped"]), int(state["step"])) == (0, 2, 4)


@pytest.mark.parametrize("optim", [SGD(lr=3e38, momentum=0.0), AdamW(lr=1e37), Muon(lr=1e37)], ids=str)
def test_an_update_that_would_overflow_the_parameters_is_skipped(optim):
    config = dataclasses.replace(CONFIG, optim=optim)
    step = make_train_step(*parts(config), config)
    state, metrics = step(fresh(config), batch())
    assert np.isfinite(metrics["loss"])
    assert int(state["skipped"]) == 1
    assert all(np.isfinite(x).all() for x in state["params"].values())


def test_keys_depend_on_seed_batch_index_and_example_alone():
    def bits(*args):
        return np.asarray(jax.random.key_data(example_keys(*args)))

    ids = jnp.arange(10)
    keys = bits(7, jnp.asarray(3), ids)
    assert len(np.unique(keys, axis=0)) == 10
    np.testing.assert_array_equal(bits(7, jnp.asarray(3), ids[4:6]), keys[4:6])
    assert (bits(8, jnp.asarray(3), ids) != keys).any(axis=1).all()
    assert (bits(7, jnp.asarray(4), ids) != keys).any(axis=1).all()


def test_the_offset_moves_the_randomness_with_the_batch():
    step = train_step(NOISY)
    a, _ = step({**fresh(NOISY), "step": jnp.asarray(2, jnp.int32), "offset": jnp.asarray(3, jnp.int32)}, batch())
    b, _ = step({**fresh(NOISY), "step": jnp.asarray(5, jnp.int32)}, batch())
    jax.tree.map(np.testing.assert_array_equal, a["params"], b["params"])


def test_the_moving_average_is_evaluated():
    config = dataclasses.replace(CONFIG, ema=0.9)
    state, _ = make_train_step(*parts(config), config)(fresh(config), batch())
    assert {path: x is state["ema"][path] for path, x in evaluated(state).items()} == dict.fromkeys(state["params"], True)
    start = fresh(config)  # its average still has the head of zeros
    kernel = state["params"]["patch_embed/proj/kernel"]
    wanted = 0.1 * start["ema"]["patch_embed/proj/kernel"] + 0.9 * kernel
    np.testing.assert_allclose(state["ema"]["patch_embed/proj/kernel"], wanted, rtol=1e-5)
    plain = fresh(CONFIG)
    assert {path: x is plain["params"][path] for path, x in evaluated(plain).items()} == dict.fromkeys(plain["params"], True)


def test_the_same_seed_gives_the_same_state():
    a, b, c = (init_state(parts(CONFIG)[0].build, dataclasses.replace(CONFIG, seed=s)) for s in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    name = "blocks/0/attn/qkv/kernel"
    assert (a["params"][name] != c["params"][name]).any()
