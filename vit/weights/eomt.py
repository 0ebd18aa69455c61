"""The names of transformers' EomtForUniversalSegmentation (arXiv 2503.19108)."""

import re
from typing import Any

import numpy as np

from vit.config import EomtHead, ViTConfig, validate
from vit.errors import UserError
from vit.weights.mapping import Rule, Table, Way, dense, in_blocks, norm, patches, rule, shaped
from vit.weights.pretrained import IMAGENET, Found

# What config.json may leave out, as transformers fills it in.
DEFAULTS: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 640,
    "patch_size": 16,
    "num_channels": 3,
    "layerscale_value": 1.0,
    "num_upscale_blocks": 2,
    "num_blocks": 4,
    "no_object_weight": 0.1,
    "class_weight": 2.0,
    "mask_weight": 5.0,
    "dice_weight": 5.0,
    "train_num_points": 12544,
    "num_queries": 200,
    "num_register_tokens": 4,
}
ACTIVATIONS: dict[str, Any] = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
UNUSED = {
    r"attn_mask_probs$": "the share of masked attention that training had come to",
    r"criterion\.empty_weight$": "weights of the classes in the loss, which the configuration tells",
    r"embeddings\.position_ids$": "position numbers",
    r"embeddings\.mask_token$": "the mask token of pre-training",
}
# A transposed convolution (in, out, 2, 2) as a matrix (in, 2·2·out), and one of each channel (D, 1, 3, 3) as (3, 3, D).
QUADRUPLED = Way(
    lambda xs: xs[0].transpose(0, 2, 3, 1).reshape(len(xs[0]), -1),
    lambda x, n: [x.reshape(len(x), 2, 2, -1).transpose(0, 3, 1, 2)],
)
DEPTHWISE = Way(lambda xs: xs[0][:, 0].transpose(1, 2, 0), lambda x, n: [x.transpose(2, 0, 1)[:, None]])


def understand(found: Found) -> tuple[ViTConfig, Table, dict[str, Any], list[str]]:
    """The model that a folder holds, its table, and what else the folder tells, `head` among it.

    Raises `UserError` for a setting that our model doesn't have.
    """
    told = {**DEFAULTS, **{name: value for name, value in found.config.items() if value is not None}}
    arrays, sides = found.arrays, told["image_size"]
    sides = (sides, sides) if isinstance(sides, int) else tuple(sides)
    if told["hidden_act"] not in ACTIVATIONS or (told.get("use_swiglu_ffn") and told["hidden_act"] != "gelu"):
        what = f"there is no activation {told['hidden_act']!r:.40} here"
        raise UserError(what, found.where, f"give a model with one of: {', '.join(ACTIVATIONS)}")
    packed = "layers.0.mlp.weights_in.weight" in arrays  # as transformers wrote it before version 5
    down = next((x for x in ("weights_out", "down_proj", "fc2") if f"layers.0.mlp.{x}.weight" in arrays), "fc2")
    mlp = arrays[f"layers.0.mlp.{down}.weight"].shape[1] if f"layers.0.mlp.{down}.weight" in arrays else 1
    config = ViTConfig(
        patch=told["patch_size"],
        width=told["hidden_size"],
        depth=told["num_hidden_layers"],
        heads=told["num_attention_heads"],
        mlp=mlp,
        positioned="patches",
        registers=told["num_register_tokens"],
        layer_scale=told["layerscale_value"],
        activation="swiglu" if told.get("use_swiglu_ffn") else ACTIVATIONS[told["hidden_act"]],
        eps=told["layer_norm_eps"],
    )
    head = EomtHead(
        queries=told["num_queries"],
        blocks=told["num_blocks"],
        upscale=told["num_upscale_blocks"],
        points=told["train_num_points"],
        class_weight=told["class_weight"],
        mask_weight=told["mask_weight"],
        dice_weight=told["dice_weight"],
        no_object=told["no_object_weight"],
    )
    validate(head, found.where)
    classes = len(arrays["class_predictor.bias"]) - 1 if "class_predictor.bias" in arrays else len(told.get("id2label", {}))
    labels = told.get("id2label") or {}
    names = [str(labels[str(i)]) for i in range(classes)] if set(labels) == {str(i) for i in range(classes)} else []
    facts: dict[str, Any] = {"image_size": sides, "channels": told["num_channels"], "classes": classes, "class_names": names}
    mean, std = (found.preprocessor.get(f"image_{x}", IMAGENET[i]) for i, x in enumerate(("mean", "std")))
    notes = [] if found.preprocessor else [f"no preprocessor_config.json tells mean and deviation: taken as {mean} and {std}"]
    notes += _still_masked(arrays.get("attn_mask_probs"))
    return config, table(config, head, told["num_channels"], packed), {**facts, "mean": mean, "std": std, "head": head}, notes


def _still_masked(share: np.ndarray | None) -> list[str]:
    if share is None or not np.any(share > 0):
        return []
    told = ", ".join(f"{x:g}" for x in np.ravel(share))
    return [f"training hadn't come to the end of masked attention: `anneal` as there would be ({told})"]


def table(config: ViTConfig, head: EomtHead, channels: int, packed: bool = False) -> Table:
    """transformers' names for the parameters; `packed` says that gate and value of the MLPs are in one matrix."""
    E, D, ours, theirs = "embeddings.", config.width, "blocks/{i}/", "layers.{i}."
    rules: list[Rule] = [
        rule("patch_embed/proj/kernel", E + "patch_embeddings.projection.weight", way=patches(config.patch, channels)),
        rule("patch_embed/proj/bias", E + "patch_embeddings.projection.bias"),
        rule("cls_token", E + "cls_token"),
        rule("pos_embed", E + "position_embeddings.weight", way=shaped((1, -1, D), (-1, D))),
        *dense(ours + "attn/qkv", *(f"{theirs}attention.{x}_proj" for x in "qkv")),
        *dense(ours + "attn/proj", theirs + "attention.out_proj"),
        *norm("norm", "layernorm"),
        rule("head/queries", "query.weight"),
        *dense("head/classify", "class_predictor"),
    ]
    rules += [rule("registers", E + "register_tokens")] if config.registers else []
    for k in "12":
        rules += norm(f"{ours}norm{k}", f"{theirs}norm{k}")
        rules += [rule(f"{ours}scale{k}", f"{theirs}layer_scale{k}.lambda1")] if config.layer_scale else []
    first, second = (("fc1",), "fc2") if config.activation != "swiglu" else (("gate_proj", "up_proj"), "down_proj")
    first, second = (("weights_in",), "weights_out") if packed else (first, second)
    rules += dense(ours + "mlp/fc1", *(f"{theirs}mlp.{x}" for x in first)) + dense(ours + "mlp/fc2", f"{theirs}mlp.{second}")
    for k in "123":
        rules += dense(f"head/mask/fc{k}", f"mask_head.fc{k}")
    for k in range(head.upscale):
        ours, theirs = f"head/upscale/{k}/", f"upscale_block.block.{k}."
        rules += [rule(ours + "up/kernel", theirs + "conv1.weight", way=QUADRUPLED), rule(ours + "bias", theirs + "conv1.bias")]
        rules += [rule(ours + "depthwise/kernel", theirs + "conv2.weight", way=DEPTHWISE)]
        rules += norm(ours + "norm", theirs + "layernorm2d")
    unused = dict(UNUSED)
    if not config.registers:
        unused[re.escape(E + "register_tokens") + "$"] = "no registers"
    return Table(in_blocks(rules, config.depth), unused)
