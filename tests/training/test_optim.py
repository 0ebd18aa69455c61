"""Schedules and optimisers against their formulas, written out in NumPy."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from vit.config import SGD, AdamW, Muon, ScheduleConfig, ViTConfig
from vit.training.optim import ema_decay, image_size, layer_scale, learning_rate, optimizer

PARAMS = {
    "blocks/0/attn/qkv/kernel": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32),
    "blocks/0/attn/qkv/bias": np.array([1.0, 2.0], np.float32),
    "blocks/0/norm1/scale": np.array([1.5], np.float32),
    "pos_embed": np.array([[0.3]], np.float32),
    "cls_token": np.array([[0.7]], np.float32),
    "attn_pool/latent": np.array([[0.2]], np.float32),
}
DECAYED = "blocks/0/attn/qkv/kernel"


def gradients(step):
    rng = np.random.default_rng(step)
    return {name: rng.normal(size=x.shape).astype(np.float32) for name, x in PARAMS.items()}


def clipped(grads, limit):
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
    return {name: g * min(1, limit / norm) for name, g in grads.items()} if limit else grads


def ours(config, clip, steps, lr=0.1, depth=1):
    optim = optimizer(config, clip, ViTConfig(depth=depth))
    params = {name: jnp.asarray(x) for name, x in PARAMS.items()}
    state = optim.init(params)
    for step in range(steps):
        direction, state = optim.update({n: jnp.asarray(g) for n, g in gradients(step).items()}, state, params)
        params = {name: params[name] - lr * direction[name] for name in params}
    return params


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_adamw(clip):
    config, lr = AdamW(weight_decay=0.3, b1=0.8, b2=0.95), 0.1
    params = {name: x.astype(np.float64) for name, x in PARAMS.items()}
    m, v = (dict.fromkeys(params, 0.0) for _ in range(2))
    for step in range(6):
        for name, g in clipped(gradients(step), clip).items():
            m[name] = 0.8 * m[name] + 0.2 * g
            v[name] = 0.95 * v[name] + 0.05 * g**2
            hat = m[name] / (1 - 0.8 ** (step + 1)), v[name] / (1 - 0.95 ** (step + 1))
            decay = 0.3 if name == DECAYED else 0.0
            params[name] = params[name] - lr * (hat[0] / (np.sqrt(hat[1]) + 1e-8) + decay * params[name])
    for name, got in ours(config, clip, 6).items():
        np.testing.assert_allclose(got, params[name], rtol=2e-5, err_msg=name)


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest():
    config, lr = Muon(weight_decay=0.3, momentum=0.9, b1=0.8, b2=0.95), 0.1
    got = ours(config, 0.0, 6)
    adamw = ours(AdamW(weight_decay=0.3, b1=0.8, b2=0.95), 0.0, 6)
    matrix, momentum = PARAMS[DECAYED].astype(np.float64), np.zeros((2, 2))
    for step in range(6):
        g = gradients(step)[DECAYED].astype(np.float64)
        momentum = 0.9 * momentum + 0.1 * g
        # Nesterov, each mean corrected for its start at zero as in Adam; then U Vᵀ of the singular value decomposition.
        ahead = 0.9 * momentum / (1 - 0.9 ** (step + 2)) + 0.1 * g / (1 - 0.9 ** (step + 1))
        x = ahead / np.linalg.norm(ahead)
        for _ in range(5):  # the quintic Newton-Schulz iteration, with the coefficients of its author
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        matrix = matrix - lr * (0.2 * np.sqrt(2) * x + 0.3 * matrix)
    np.testing.assert_allclose(got[DECAYED], matrix, rtol=2e-4)
    for name in PARAMS.keys() - {DECAYED}:
        np.testing.assert_allclose(got[name], adamw[name], rtol=1e-6, err_msg=name)


def test_phases_of_the_resolution():
    config = ScheduleConfig(sizes=(16, 24), until=(0.4, 0.75))
    assert [image_size(config, step, 1000) for step in (0, 399, 400, 749, 750, 999)] == [16, 16, 24, 24, 0, 0]
    assert image_size(ScheduleConfig(), 0, 1000) == 0


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_sgd_momentum(clip):
    params = {name: x.astype(np.float64) for name, x in PARAMS.items()}
    velocity = dict.fromkeys(params, 0.0)
    for step in range(6):
        for name, g in clipped(gradients(step), clip).items():
            g = g + (0.3 if name == DECAYED else 0.0) * params[name]
            velocity[name] = 0.9 * velocity[name] + g
            params[name] = params[name] - 0.1 * velocity[name]
    for name, got in ours(SGD(weight_decay=0.3, momentum=0.9), clip, 6).items():
        np.testing.assert_allclose(got, params[name], rtol=2e-5, err_msg=name)


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
def test_schedule(decay, warmup):
    schedule = learning_rate(ScheduleConfig(warmup, decay), 0.5, 25)
    rates = np.array([float(schedule(t)) for t in range(25)])
    rest = np.arange(25 - warmup) / (25 - warmup)
    after = {"cosine": 0.5 * (1 + np.cos(np.pi * rest)), "linear": 1 - rest, "constant": np.ones_like(rest)}[decay]
    rise = np.arange(1, warmup + 1) / (warmup + 1)
    np.testing.assert_allclose(rates, 0.5 * np.concatenate([rise, after]), rtol=1e-5)
    assert (rates > 0).all()


def test_a_run_may_end_within_its_warm_up():
    schedule = learning_rate(ScheduleConfig(warmup=9), 1.0, 4)
    assert [float(schedule(t)) for t in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_the_moving_average_is_short_at_first():
    assert [float(ema_decay(0.99, jnp.asarray(t))) for t in (0, 10, 10_000)] == pytest.approx([0.1, 0.55, 0.99])


# What timm 1.0.31's param_groups_layer_decay(layer_decay=0.5) gives a ViT of three blocks, as lr_scale.
TIMM = {
    "cls_token": 0.0625, "pos_embed": 0.0625, "registers": 0.0625, "patch_embed/proj/kernel": 0.0625,
    "patch_embed/proj/bias": 0.0625, "pre_norm/scale": 0.0625, "blocks/0/norm1/scale": 0.125,
    "blocks/1/attn/qkv/kernel": 0.25, "blocks/2/mlp/fc2/bias": 0.5, "norm/scale": 0.5, "norm/bias": 0.5,
    "attn_pool/latent": 1.0, "head/kernel": 1.0, "head/bias": 1.0,
}  # fmt: skip


def test_layers_are_grouped_as_timm_groups_them():
    assert {path: layer_scale(path, 0.5, ViTConfig(depth=3)) for path in TIMM} == TIMM
    assert layer_scale("norm/scale", 0.5, ViTConfig(depth=3, final_norm="pooled")) == 1  # timm's fc_norm


@pytest.mark.parametrize("config", [AdamW(weight_decay=0.3), SGD(weight_decay=0.3), Muon()])
def test_layer_decay_scales_update_and_weight_decay_alike(config):
    # Gradients don't depend on the parameters here; after one step the moments don't either.
    plain = ours(config, 0.5, 1, depth=3)
    decayed = ours(dataclasses.replace(config, layer_decay=0.5), 0.5, 1, depth=3)
    for name, start in PARAMS.items():
        scale = 0.0625 if name in ("pos_embed", "cls_token") else 1.0 if name.startswith("attn_pool") else 0.125
        np.testing.assert_allclose(decayed[name] - start, scale * (plain[name] - start), rtol=1e-4, atol=1e-7, err_msg=name)
