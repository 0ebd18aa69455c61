"""Freezing, LoRA and chosen settings: what moves, what doesn't, and what is kept of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.test_vit import run
from tests.training.test_sharding import mesh_of
from tests.training.test_state import CONFIG, batch, parts
from vit.config import SGD, AdamW, AugmentConfig, Config, FolderData, LoraConfig, Muon
from vit.errors import UserError
from vit.models.vit import merge, split
from vit.training import lora
from vit.training.checkpoint import Checkpoints
from vit.training.defaults import HEAD_ALONE, ORDER, resolve
from vit.training.sharding import collect, distribute, place, state_shardings
from vit.training.state import evaluated, init_state, make_train_step, state_shapes
from vit.training.trained import trained

BASE = dataclasses.replace(CONFIG, optim=AdamW(lr=1e-2, weight_decay=0.1), ema=0.9)
LORA = dataclasses.replace(BASE, lora=LoraConfig(rank=2, alpha=6.0))
FROZEN = dataclasses.replace(BASE, freeze=("blocks/0", "patch_embed", "*/bias"))


def begin(config):
    """A state whose parameters are all different from zero, so that each has a gradient."""
    state = init_state(parts(config)[0].build, config)
    keys = jax.random.split(jax.random.key(5), len(state["params"]))
    params = {p: x + 0.1 * jax.random.normal(k, x.shape) for (p, x), k in zip(state["params"].items(), keys, strict=True)}
    if "lora_scale" in params:
        params["lora_scale"] = state["params"]["lora_scale"]
    return {**state, "params": params, "ema": {path: jnp.copy(params[path]) for path in state["ema"]}}


@functools.cache
def after(config, steps=3):
    """Parameters before some steps and the state after them."""
    step, state = make_train_step(*parts(config), config), begin(config)
    for i in range(steps):
        state, _ = step(state, batch(start=24 * i))
    return {path: np.asarray(x) for path, x in begin(config)["params"].items()}, jax.tree.map(jnp.asarray, collect(state))


def optimised(state):
    """Paths of the parameters that the optimiser keeps an array for."""
    leaves = jax.tree_util.tree_leaves_with_path(state["opt"])
    return {path[-1].key for path, x in leaves if isinstance(path[-1], jax.tree_util.DictKey) and x.ndim}


@pytest.mark.parametrize(
    "optim", [AdamW(lr=1e-2), SGD(lr=1e-2, weight_decay=0.1), Muon(lr=1e-2)], ids=lambda o: type(o).__name__
)
def test_frozen_parameters_keep_their_bits_and_have_no_state(optim):
    config = dataclasses.replace(FROZEN, optim=dataclasses.replace(optim, layer_decay=0.9))
    before, state = after(config)
    still = {path for path in before if path.startswith(("blocks/0/", "patch_embed/")) or path.endswith("/bias")}
    assert 0 < len(still) < len(before)
    for path, x in before.items():
        assert np.array_equal(x, state["params"][path]) == (path in still), path
    assert optimised(state) == before.keys() - still
    assert state["ema"].keys() == before.keys() - still
    assert evaluated(state).keys() == before.keys()


def test_what_is_trained_moves_as_if_nothing_were_frozen():
    config = dataclasses.replace(FROZEN, optim=SGD(lr=1e-2), ema=0.0)
    _, part = after(config, steps=1)
    _, whole = after(dataclasses.replace(config, freeze=()), steps=1)
    for path in trained(config, whole["params"]):
        np.testing.assert_allclose(part["params"][path], whole["params"][path], rtol=1e-6, err_msg=path)


def test_lora_begins_as_the_model_it_is_added_to():
    task = parts(BASE)[0]
    plain, added = init_state(task.build, BASE)["params"], init_state(task.build, LORA)["params"]
    merged = lora.merged(added)
    assert merged.keys() == plain.keys()
    jax.tree.map(np.testing.assert_array_equal, merged, plain)
    assert len(added) - len(plain) == 2 * 4 * 2 + 1  # A and B for qkv, proj, fc1 and fc2 of two blocks, and the scale


def test_a_merged_model_is_the_model_with_additions():
    """The reference: every matrix of the blocks multiplied first, then its two factors, written out."""
    params = begin(LORA)["params"]
    graph, _ = split(parts(LORA)[0].build(nnx.Rngs(0)))
    image = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))

    class Added:
        def __init__(self, path):
            self.w, self.b, (self.l, self.r) = (
                params[f"{path}/kernel"],
                params[f"{path}/bias"],
                (params[f"{path}/lora_{x}"] for x in "ab"),
            )

        def __call__(self, x):
            return x @ self.w + self.b + 3.0 * ((x @ self.l) @ self.r)

    model = merge(graph, {path: x for path, x in params.items() if "lora" not in path})
    for i, block in enumerate(model.blocks):
        for part, name in ((block.attn, "qkv"), (block.attn, "proj"), (block.mlp, "fc1"), (block.mlp, "fc2")):
            module = "attn" if part is block.attn else "mlp"
            object.__setattr__(part, name, Added(f"blocks/{i}/{module}/{name}"))
    wanted = jax.jit(lambda x: model(x)[0])(image)
    got, plain = (run(graph, p, image)[0] for p in (lora.merged(params), {p: x for p, x in params.items() if "lora" not in p}))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(got - plain).max() > 1e-2


def test_lora_trains_its_factors_and_the_head_alone():
    before, state = after(LORA)
    moved = {path for path, x in before.items() if not np.array_equal(x, state["params"][path])}
    assert moved == {path for path in before if path.endswith(("lora_a", "lora_b"))} | {"head/kernel", "head/bias"}
    assert optimised(state) == moved == state["ema"].keys()


def test_lora_in_microbatches_is_lora_in_one():
    config = dataclasses.replace(LORA, optim=SGD(lr=1e-2))
    _, whole = after(config, steps=1)
    _, cut = after(dataclasses.replace(config, accumulate=3), steps=1)
    for path, x in whole["params"].items():
        np.testing.assert_allclose(cut["params"][path], x, rtol=1e-5, atol=1e-7, err_msg=path)


@pytest.mark.parametrize("fsdp", [False, True])
def test_lora_on_eight_devices_and_what_its_checkpoint_gives(tmp_path, fsdp):
    config = dataclasses.replace(LORA, fsdp=fsdp)
    task, prepare = parts(config)
    mesh = mesh_of(8)
    like = state_shardings(state_shapes(task, config), mesh, fsdp)
    state, step = distribute(begin(config), like), make_train_step(task, prepare, config, like)
    for i in range(3):
        state, _ = step(state, place({name: np.asarray(x) for name, x in batch(start=24 * i).items()}, mesh))
    _, alone = after(config)
    for path, x in collect(evaluated(state)).items():
        np.testing.assert_allclose(x, evaluated(alone)[path], rtol=1e-3, atol=1e-5, err_msg=path)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(3, state, {"scores": {}})
        checkpoints.wait()
        jax.tree.map(np.testing.assert_array_equal, collect(checkpoints.restore(3, like)), collect(state))
        params = checkpoints.params(3)  # a plain ViT's, of the averages
    assert params.keys() == split(task.build(nnx.Rngs(0)))[1].keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, collect(evaluated(state)))


def test_a_folder_stands_for_what_is_below_it():
    paths = [f"blocks/{i}/mlp/fc1/kernel" for i in (1, 10)] + ["head/kernel", "cls_token"]
    assert trained(Config(freeze=("blocks/1", "cls_token")), paths) == ["blocks/10/mlp/fc1/kernel", "head/kernel"]
    assert trained(Config(freeze=HEAD_ALONE), paths) == ["head/kernel"]
    with pytest.raises(UserError, match="try blocks"):
        trained(Config(freeze=("block/*",)), paths)
    with pytest.raises(UserError, match="leaves nothing to train"):
        trained(Config(freeze=("*",)), paths)


# ---- chosen settings ----

AUTO = Config(batch_size=64, data=FolderData(dir="x"), augment=AugmentConfig(flip=True), auto=tuple(ORDER))


def chosen(images, parameters, pretrained=True, **changes):
    return resolve(dataclasses.replace(AUTO, **changes), images, parameters, pretrained)


def test_every_choice_is_made_and_has_its_reason():
    config, lines = chosen(2_000, 86e6)
    assert config.auto == ()
    assert len(lines) == len(ORDER)
    assert all(line.startswith("chosen: --") and line.endswith(")") for line in lines)
    assert config.steps == 100 * 2_000 // 64
    assert (config.optim.layer_decay, config.model.drop_path, config.freeze) == (0.65, 0.1, ())
    assert config.optim.lr == pytest.approx(5e-4 / 4)
    assert config.schedule.warmup == config.steps // 20


def test_choices_follow_the_sizes():
    assert chosen(300, 86e6)[0].freeze == HEAD_ALONE
    assert chosen(300, 86e6)[0].model.drop_path == 0  # frozen features without noise
    assert chosen(300, 0.9e6)[0].freeze == chosen(300, 86e6, pretrained=False)[0].freeze == ()
    seen = [chosen(n, 22e6)[0].steps * 64 for n in (64, 19_200, 50_000, 1_280_000)]
    assert seen == [6_400, 256_000, 5_000_000, 10_240_000]
    assert [chosen(n, 22e6)[0].augment.mixup for n in (19_999, 20_000, 1_280_000)] == [0.0, 0.1, 0.8]
    rates = [chosen(5_000, n)[0].optim for n in (1e6, 6e6, 22e6, 86e6, 304e6, 632e6)]
    assert all(0 < optim.layer_decay < 1 for optim in rates)
    assert chosen(5_000, 22e6, pretrained=False)[0].optim.layer_decay == 1


def test_what_is_not_in_auto_is_left_alone_and_others_follow_it():
    given = dataclasses.replace(AUTO, steps=77, auto=tuple(name for name in ORDER if name != "steps"))
    config, lines = resolve(given, 2_000, 1e6, True)
    assert (config.steps, config.schedule.warmup, config.eval_every) == (77, 3, 7)
    assert not any("--steps" in line for line in lines)
    with pytest.raises(UserError, match=r"give names of settings, as optim\.lr"):
        resolve(dataclasses.replace(AUTO, auto=("optim.lrr",)), 10, 10, True)
