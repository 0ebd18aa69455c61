"""Every family from timm and transformers: the same tokens, logits and gradients, at the native size and at another."""

import copy
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from tests.parity.families import Case, cases, randomised
from vit.models.vit import ViT, merge
from vit.weights import Pretrained, load

FORWARD, BACKWARD = 1e-4, 1e-3
FIGURES = Path(__file__).parent / "figures.jsonl"  # what docs/decisions/0009 tabulates


def graph(w: Pretrained) -> nnx.GraphDef:
    shape = {"image_size": w.image_size, "channels": w.channels, "classes": w.classes}
    return nnx.graphdef(nnx.eval_shape(lambda: ViT(w.config, **shape, rngs=nnx.Rngs(0))))


def ours(w: Pretrained, images: np.ndarray, weights: tuple[Any, Any]) -> tuple[Any, Any, Any]:
    """Tokens, logits, and the gradient of one loss, by path."""
    definition = graph(w)

    def loss(params: dict[str, Any]) -> tuple[Any, Any]:
        result, out = merge(definition, params)(jnp.asarray(images))
        return (out["tokens"] * weights[0]).sum() + (result * weights[1]).sum(), (out["tokens"], result)

    (_, both), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))({k: jnp.asarray(x) for k, x in w.params.items()})
    return *both, gradient


def relative(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_tokens_logits_and_gradients_agree(case: Case, tmp_path: Path):
    model = randomised(case.build())
    case.save(model, tmp_path / "weights")
    w = load(str(tmp_path / "weights"))
    assert w.image_size == case.native
    figures = {"name": case.name}
    for which, size in (("native", case.native), ("other", case.other)):
        rng = np.random.default_rng(len(which))
        images = rng.standard_normal((2, *size, 3), np.float32)
        tokens, logits = case.run(model, torch.tensor(images).permute(0, 3, 1, 2))
        factors = [rng.standard_normal(x.shape).astype(np.float32) for x in (tokens, logits)]
        model.zero_grad()
        ((tokens * torch.tensor(factors[0])).sum() + (logits * torch.tensor(factors[1])).sum()).backward()
        got = ours(w, images, (factors[0], factors[1]))
        figures[f"{which} tokens"] = relative(got[0], tokens.detach())
        figures[f"{which} logits"] = relative(got[1], logits.detach())
        figures[f"{which} gradients"] = gradients(case, model, got[2], tmp_path / which)
    with FIGURES.open("a") as file:
        file.write(json.dumps(figures) + "\n")
    for name, error in figures.items():
        assert name == "name" or error < (BACKWARD if "gradients" in name else FORWARD), figures


def gradients(case: Case, model: Any, got: dict[str, Any], folder: Path) -> float:
    """The largest error of a gradient, relative to its own size. PyTorch's go the weights' way: saved and loaded."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for mine, p in zip(twin.parameters(), model.parameters(), strict=True):
            mine.copy_(torch.zeros_like(p) if p.grad is None else p.grad)
    case.save(twin, folder)
    wanted = load(str(folder)).params
    largest = max(np.abs(x).max() for x in wanted.values())
    errors = {}
    fixed = {"pos_embed"} if "ViTMAE" in case.name else set()  # MAE's positions aren't trained there
    fixed |= {"head/bias"} if "WithProjection" in case.name else set()  # there is none there
    for path in wanted.keys() - fixed:
        # A gradient that is zero but for rounding (a bias of keys, which softmax ignores) is held to the others' scale.
        scale = max(np.abs(wanted[path]).max(), 1e-4 * largest)
        errors[path] = float(np.abs(np.asarray(got[path]) - wanted[path]).max() / scale)
    return max(errors.values())
