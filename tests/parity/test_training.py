"""Twenty AdamW steps from the same weights on the same batches, with timm's parameter groups: the same losses."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from tests.parity.families import of_timm, randomised
from tests.parity.test_parity import FIGURES
from vit.config import AdamW, ClassificationConfig, Config, ScheduleConfig
from vit.tasks import make_task
from vit.training.optim import DECAYED, layer_scale
from vit.training.state import init_state, make_train_step
from vit.weights import load
from vit.weights import timm as table

LR, DECAY, LAYER = 1e-3, 0.05, 0.7
CASES = [
    of_timm("", "vit_tiny_patch16_224", depth=3),
    of_timm("", "deit3_small_patch16_224"),
    of_timm("", "vit_tiny_patch16_224", global_pool="avg"),
    of_timm("", "vit_small_plus_patch16_dinov3_qkvb", global_pool="token"),
    of_timm("", "vit_base_patch32_clip_quickgelu_224", embed_dim=96, num_heads=3),
    of_timm("", "deit_small_distilled_patch16_224"),
]
NAMES = ["ViT", "DeiT-III", "ViT, mean and fc_norm", "DINOv3", "CLIP", "DeiT distilled"]


def groups(model):
    left_alone = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    return param_groups_layer_decay(model, DECAY, no_weight_decay_list=left_alone, layer_decay=LAYER)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_groups_are_timms(case, tmp_path: Path):
    model = case.build()
    case.save(model, tmp_path / "w")
    w = load(str(tmp_path / "w"))
    theirs = {id(p): (g["lr_scale"], g["weight_decay"] > 0) for g in groups(model) for p in g["params"]}
    theirs = {name: theirs[id(p)] for name, p in model.named_parameters()}
    rules = table.table(w.config, w.channels, w.classes, table.layout_of(w.config)).rules
    checked = set()
    for rule in rules:
        for name in rule.theirs:
            scale, decayed = theirs[name]
            for path in rule.ours:
                assert layer_scale(path, LAYER, w.config) == pytest.approx(scale), (path, name)
                assert path.endswith("kernel") == (decayed and DECAYED == r"kernel$"), (path, name)
            checked.add(name)
    assert checked == set(theirs)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_twenty_steps_follow(case, tmp_path: Path, request: pytest.FixtureRequest):
    model = randomised(case.build())
    case.save(model, tmp_path / "w")
    w = load(str(tmp_path / "w"))
    parts = [{**g, "lr": LR * g["lr_scale"]} for g in groups(model)]
    optimiser = torch.optim.AdamW(parts, lr=LR, betas=(0.9, 0.999), eps=1e-8)
    data = {"image_size": w.image_size, "channels": 3, "class_names": [str(i) for i in range(5)]}
    task = make_task(ClassificationConfig(), w.config, data)
    optim = AdamW(lr=LR, weight_decay=DECAY, layer_decay=LAYER)
    config = Config(steps=20, clip=0.0, optim=optim, model=w.config, schedule=ScheduleConfig(decay="constant"), batch_size=8)
    step = make_train_step(task, lambda batch, keys: batch, config)
    state = init_state(task.build, config, {k: jnp.asarray(x) for k, x in w.params.items()})
    rng = np.random.default_rng(1)
    errors = []
    for i in range(20):
        images = rng.standard_normal((8, *w.image_size, 3), np.float32)
        labels = rng.integers(0, 5, 8).astype(np.int32)
        loss = torch.nn.functional.cross_entropy(model(torch.tensor(images).permute(0, 3, 1, 2)), torch.tensor(labels).long())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        batch = {"image": images, "label": labels, "id": np.arange(8, dtype=np.int32) + 8 * i, "mask": np.ones(8, bool)}
        state, said = step(state, jax.tree.map(jnp.asarray, batch))
        errors.append(abs(float(said["loss"]) - loss.item()) / loss.item())
    with FIGURES.open("a") as file:
        file.write(json.dumps({"name": f"training: {request.node.callspec.id}", "loss": max(errors)}) + "\n")
    assert max(errors) < 1e-4, errors
    assert timm.__version__
