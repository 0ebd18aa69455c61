"""The names in the .npz files of google-research/vision_transformer (AugReg) and big_vision (SigLIP)."""

import math
import re
from typing import Any

import numpy as np

from vit.config import ViTConfig
from vit.errors import UserError
from vit.models.vit import prefix_tokens
from vit.weights.mapping import SAME, Arrays, Rule, Table, Way, in_blocks, rule, shaped
from vit.weights.pretrained import HALF, Found

PREFIXES = ("opt/target/", "params/img/", "params/", "")
UNUSED = {
    r"params/(txt|t$|b$)": "the text tower",
    r"opt/(state|extra)": "the optimiser's state",
    r"extra/": "the training's state",
}


def knows(arrays: Arrays) -> str | None:
    """What stands before these names, if they are Google's."""
    return next((p for p in PREFIXES if f"{p}embedding/kernel" in arrays), None)


def understand(found: Found) -> tuple[ViTConfig, Table, dict[str, Any], Arrays, list[str]]:
    """The model of a file, its table, what else the file tells, and the arrays with the blocks apart."""
    prefix = knows(found.arrays) or ""
    arrays = apart(found.arrays)
    kernel, E = arrays[f"{prefix}embedding/kernel"], f"{prefix}Transformer/"
    if kernel.ndim != 4 or kernel.shape[0] != kernel.shape[1]:
        what = f"a patch embedding of shape {kernel.shape} isn't one of square patches"
        raise UserError(what, found.where, "give a ViT with square patches of fixed size")
    patch, _, channels, width = kernel.shape
    big_vision = f"{E}encoderblock_0/MultiHeadDotProductAttention_0/query/kernel" in arrays
    depth = 1 + max((int(m[1]) for name in arrays if (m := re.search(r"/encoderblock_(\d+)/", name))), default=-1)
    query = arrays.get(f"{E}encoderblock_0/MultiHeadDotProductAttention_{0 if big_vision else 1}/query/kernel")
    hidden = arrays.get(f"{E}encoderblock_0/MlpBlock_{0 if big_vision else 3}/Dense_0/kernel")
    positions = arrays.get(f"{prefix}pos_embedding" if big_vision else f"{E}posembed_input/pos_embedding")
    token, pooling = f"{prefix}cls" in arrays, f"{prefix}MAPHead_0/probe" in arrays
    fixed = positions is None and big_vision and not token and not pooling  # big_vision's ViT-S/16 for ImageNet
    if depth < 1 or query is None or hidden is None or (positions is None and not fixed):
        raise UserError("this is no plain ViT of Google's", found.where, "give a ViT without convolutions or experts")
    config = ViTConfig(
        patch=patch,
        width=width,
        depth=depth,
        heads=query.shape[1],
        mlp=hidden.shape[1],
        position="sincos" if fixed else "learned",
        pool="map" if pooling else "token" if token else "mean",
        class_token=token and pooling,
        positioned="patches" if big_vision and token else "all",
        pre_logits=arrays[f"{prefix}pre_logits/kernel"].shape[1] if f"{prefix}pre_logits/kernel" in arrays else 0,
        activation="gelu_tanh",  # flax's gelu is the approximate one
    )
    if positions is None:
        covered = (224 // patch) ** 2
    else:
        covered = positions.reshape(-1, width).shape[0] - (0 if big_vision else int(token))
    side = math.isqrt(covered)
    if side * side != covered:
        raise UserError(f"{covered} positions are no square of patches", found.where, "give a file of square images")
    classes = arrays[f"{prefix}head/bias"].shape[0] if f"{prefix}head/bias" in arrays else 0
    facts = {"image_size": (side * patch, side * patch), "channels": channels, "classes": classes}
    facts |= {"mean": HALF[0], "std": HALF[1], "class_names": []}
    notes = ["the GELU is taken as the tanh approximation, as flax computes it"]
    notes += ["there is no table of positions: taken as fixed sin-cos ones, for images of 224 pixels"] if fixed else []
    return config, table(config, channels, classes, prefix, big_vision), facts, arrays, notes


def apart(arrays: Arrays) -> Arrays:
    """big_vision's blocks under one name, stacked, as blocks under one name each."""
    every: Arrays = {}
    for name, x in arrays.items():
        if "/encoderblock/" in name:
            every |= {name.replace("/encoderblock/", f"/encoderblock_{i}/"): part for i, part in enumerate(x)}
        else:
            every[name] = x
    return every


def own_table(config: ViTConfig, channels: int, classes: int) -> Table:
    """The names in a file of our own: AugReg's, and big_vision's where attention pools or positions leave out the token."""
    big_vision = config.pool == "map" or (config.positioned != "all" and prefix_tokens(config)[0] > 0)
    return table(config, channels, classes, "params/" if big_vision else "", big_vision)


def table(config: ViTConfig, channels: int, classes: int, prefix: str, big_vision: bool) -> Table:
    """Google's names for the parameters of a model."""
    P, D, E = config.patch, config.width, f"{prefix}Transformer/"
    conv = shaped((P * P * channels, D), (P, P, channels, D))
    rules = [rule("patch_embed/proj/kernel", f"{prefix}embedding/kernel", way=conv)]
    rules.append(rule("patch_embed/proj/bias", f"{prefix}embedding/bias"))
    rules += [rule("cls_token", f"{prefix}cls")] if prefix_tokens(config)[0] else []
    place = f"{prefix}pos_embedding" if big_vision else f"{E}posembed_input/pos_embedding"
    if config.position == "learned":
        rules.append(rule("pos_embed", place, way=Way(lambda xs: xs[0].reshape(1, -1, D), lambda x, n: [x])))
    rules += _norm("norm", f"{E}encoder_norm")
    ours, theirs = "blocks/{i}/", E + "encoderblock_{i}/"
    attention, second, mlp = (0, 1, 0) if big_vision else (1, 2, 3)
    rules += _norm(ours + "norm1", f"{theirs}LayerNorm_0") + _norm(ours + "norm2", f"{theirs}LayerNorm_{second}")
    rules += _attention(f"{theirs}MultiHeadDotProductAttention_{attention}/", config, (ours + "attn/qkv",), ours + "attn/proj")
    rules += _mlp(ours + "mlp/", f"{theirs}MlpBlock_{mlp}/")
    if config.pool == "map":
        head, pool = f"{prefix}MAPHead_0/", "attn_pool/"
        rules += [rule(pool + "latent", head + "probe"), *_norm(pool + "norm", head + "LayerNorm_0")]
        rules += _mlp(pool + "mlp/", head + "MlpBlock_0/")
        names = tuple(pool + x for x in "qkv")
        rules += _attention(f"{head}MultiHeadDotProductAttention_0/", config, names, pool + "proj")
    for name in ("pre_logits",) * bool(config.pre_logits) + ("head",) * bool(classes):
        rules += _dense(name, f"{prefix}{name}")
    return Table(in_blocks(rules, config.depth), UNUSED)


def _dense(ours: str, theirs: str) -> list[Rule]:
    return [rule(f"{ours}/{x}", f"{theirs}/{x}") for x in ("kernel", "bias")]


def _mlp(ours: str, theirs: str) -> list[Rule]:
    return _dense(ours + "fc1", theirs + "Dense_0") + _dense(ours + "fc2", theirs + "Dense_1")


def _norm(ours: str, theirs: str) -> list[Rule]:
    return [rule(f"{ours}/{x}", f"{theirs}/{x}") for x in ("scale", "bias")]


def _attention(theirs: str, config: ViTConfig, qkv: tuple[str, ...], proj: str) -> list[Rule]:
    """Google's kernels have an axis for the heads."""
    D, h = config.width, config.heads
    d = D // h
    kernels = Way(
        lambda xs: np.concatenate([x.reshape(D, D) for x in xs], axis=1),
        lambda x, n: [part.reshape(D, h, d) for part in np.split(x, n, axis=1)],
    )
    biases = Way(
        lambda xs: np.concatenate([x.reshape(D) for x in xs]), lambda x, n: [part.reshape(h, d) for part in np.split(x, n)]
    )
    names = [theirs + x for x in ("query", "key", "value")]
    rules = [
        Rule(tuple(f"{name}/{part}" for name in qkv), tuple(f"{name}/{part}" for name in names), way)
        for part, way in (("kernel", kernels), ("bias", biases))
    ]
    return [
        *rules,
        rule(f"{proj}/kernel", theirs + "out/kernel", way=shaped((D, D), (h, d, D))),
        rule(f"{proj}/bias", theirs + "out/bias", way=SAME),
    ]
