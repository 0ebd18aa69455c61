"""Google's .npz, its names written down here by hand: timm's own reader and ours make the same model of it."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from tests.parity.families import timm_run
from tests.parity.test_back import images, ours, torched
from tests.parity.test_parity import relative
from vit.weights import load

D, HEADS, DEPTH, MLP, PATCH, GRID, CLASSES = 48, 3, 2, 96, 8, 4, 5


def attention(name, rng):
    shapes = {"query": (D, HEADS, D // HEADS), "key": (D, HEADS, D // HEADS), "value": (D, HEADS, D // HEADS)}
    made = {f"{name}/{k}/kernel": rng(s) for k, s in shapes.items()}
    made |= {f"{name}/{k}/bias": rng((HEADS, D // HEADS)) for k in shapes}
    return made | {f"{name}/out/kernel": rng((HEADS, D // HEADS, D)), f"{name}/out/bias": rng((D,))}


def mlp(name, rng):
    first = {f"{name}/Dense_0/kernel": rng((D, MLP)), f"{name}/Dense_0/bias": rng((MLP,))}
    return first | {f"{name}/Dense_1/kernel": rng((MLP, D)), f"{name}/Dense_1/bias": rng((D,))}


def norm(name, rng):
    return {f"{name}/scale": 1 + rng((D,)), f"{name}/bias": rng((D,))}


def file(kind: str) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)

    def rng(shape):
        return (0.1 * generator.standard_normal(shape)).astype(np.float32)

    big = kind != "augreg"
    p = "params/img/" if kind == "siglip" else "params/" if big else ""
    made = {f"{p}embedding/kernel": rng((PATCH, PATCH, 3, D)), f"{p}embedding/bias": rng((D,))}
    made |= norm(f"{p}Transformer/encoder_norm", rng)
    if kind == "augreg":
        made |= {"cls": rng((1, 1, D)), "Transformer/posembed_input/pos_embedding": rng((1, GRID**2 + 1, D))}
    else:
        made[f"{p}pos_embedding"] = rng((1, GRID**2, D))
    if kind == "big_vision_token":
        made[f"{p}cls"] = rng((1, 1, D))
    blocks = []
    for i in range(DEPTH):
        a, n, m = (0, 1, 0) if big else (1, 2, 3)
        b = f"{p}Transformer/encoderblock_{i}"
        block = norm(f"{b}/LayerNorm_0", rng) | norm(f"{b}/LayerNorm_{n}", rng)
        block |= attention(f"{b}/MultiHeadDotProductAttention_{a}", rng) | mlp(f"{b}/MlpBlock_{m}", rng)
        blocks.append(block)
    if kind == "siglip":  # blocks stacked under one name, and a text tower beside
        names = [name.replace("encoderblock_0", "encoderblock") for name in blocks[0]]
        made |= {name: np.stack(parts) for name, *parts in zip(names, *(b.values() for b in blocks), strict=True)}
        made |= {"params/t": rng((1,)), "params/b": rng((1,)), "params/txt/Embed_0/embedding": rng((9, D))}
    else:
        made |= {name: x for block in blocks for name, x in block.items()}
    if kind in ("siglip", "big_vision_map"):
        head = f"{p}MAPHead_0"
        made |= {f"{head}/probe": rng((1, 1, D))} | norm(f"{head}/LayerNorm_0", rng) | mlp(f"{head}/MlpBlock_0", rng)
        made |= attention(f"{head}/MultiHeadDotProductAttention_0", rng)
    if kind != "siglip":
        made |= {f"{p}head/kernel": rng((D, CLASSES)), f"{p}head/bias": rng((CLASSES,))}
    return made


@pytest.mark.parametrize("kind", ["augreg", "big_vision_gap", "big_vision_token", "big_vision_map", "siglip"])
def test_both_read_the_same(kind: str, tmp_path: Path):
    np.savez(tmp_path / "weights.npz", **file(kind))
    pool = {"augreg": "token", "big_vision_token": "token", "big_vision_gap": "avg"}.get(kind, "map")
    model = timm.create_model(
        "vit_base_patch16_224", img_size=PATCH * GRID, patch_size=PATCH, embed_dim=D, depth=DEPTH, num_heads=HEADS,
        mlp_ratio=MLP / D, global_pool=pool, class_token=pool == "token", fc_norm=False, act_layer="gelu_tanh",
        no_embed_class=kind != "augreg", num_classes=0 if kind == "siglip" else CLASSES,
    ).eval()  # fmt: skip
    model.load_pretrained(str(tmp_path / "weights.npz"))
    x = images((PATCH * GRID, PATCH * GRID))
    with torch.no_grad():
        wanted = timm_run(model, torched(x))[1]
    w = load(str(tmp_path / "weights.npz"))
    assert relative(ours(w, x), wanted) < 1e-4
    assert any("text tower" in note for note in w.notes) == (kind == "siglip")
