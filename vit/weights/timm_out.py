"""A model of ours as timm builds it: the nearest published architecture, and the arguments that make it this one."""

from typing import Any

from vit.models.vit import patch_grid, prefix_tokens
from vit.weights import timm
from vit.weights.mapping import Table
from vit.weights.pretrained import Pretrained, covering, refuse_unless

POOLS = {"mean": "avg", "token": "token", "map": "map"}


def describe(w: Pretrained) -> tuple[Pretrained, dict[str, Any], Table, list[str]]:
    """The weights as timm has them, its config.json, its names, and what to know.

    Raises `UserError` for a model that timm doesn't have.
    """
    refuse_unless(w, "timm", pre_logits=(0,), pool=tuple(POOLS))
    if w.config.positioned == "class":
        w = covering(w, "patches")
    if w.config.distilled:
        w = covering(w, "all")
        refuse_unless(w, "timm", registers=(1,))
    layout = timm.layout_of(w.config)
    name, args, eps = (_eva if layout.eva else _vit)(w)
    lines = [] if w.config.eps == eps else [f"timm's {name} adds {eps:g} to the variance, this model {w.config.eps:g}"]
    labels = {"label_names": w.class_names} if w.class_names else {}
    height, width = w.image_size
    cfg = {"mean": w.mean, "std": w.std, "input_size": [w.channels, height, width], "num_classes": w.classes, **labels}
    cfg |= {"first_conv": "patch_embed.proj", "classifier": ["head", "head_dist"] if w.config.distilled else "head"}
    pool = POOLS[w.config.pool]
    told = {"architecture": name, "num_classes": w.classes, "num_features": w.config.width, "global_pool": pool}
    told |= {"pretrained_cfg": {**cfg, "fixed_input_size": True}, "model_args": {**_sizes(w), "global_pool": pool, **args}}
    return w, told, timm.own_table(w.config, w.channels, w.classes), lines


def _sizes(w: Pretrained) -> dict[str, Any]:
    config = w.config
    sizes = {"img_size": list(w.image_size), "patch_size": config.patch, "in_chans": w.channels, "num_classes": w.classes}
    return {**sizes, "embed_dim": config.width, "depth": config.depth, "num_heads": config.heads}


def ratio(hidden: int, width: int) -> float:
    """The MLP's hidden width as a multiple of the model's, so that rounding down gives it back."""
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def _vit(w: Pretrained) -> tuple[str, dict[str, Any], float]:
    config = w.config
    refuse_unless(w, "timm", patch_bias=(not config.pre_norm,), rope=("none",))
    refuse_unless(w, "timm", qkv_bias=("qkv", "none"), final_norm=("tokens", "pooled", "none"))
    gated = config.activation == "swiglu"
    name, eps = "vit_base_patch16_224", 1e-6
    if config.distilled:
        name = "deit_base_distilled_patch16_224"
    elif gated:
        name = "vit_giant_patch14_dinov2"
    elif config.pre_norm:
        name, eps = "vit_base_patch16_clip_224", 1e-5
    prefix, covered = prefix_tokens(config)
    acts = {"swiglu": "silu"}
    args = {
        "mlp_ratio": ratio((1 + gated) * config.mlp, config.width),
        "qkv_bias": config.qkv_bias == "qkv",
        "qk_norm": config.qk_norm,
        "scale_attn_norm": config.inner_norm == "both",
        "scale_mlp_norm": config.inner_norm != "none",
        "init_values": config.layer_scale or None,
        "class_token": prefix > config.registers,
        "no_embed_class": covered < prefix,
        "reg_tokens": 0 if config.distilled else config.registers,
        "pre_norm": config.pre_norm,
        "final_norm": config.final_norm != "none",
        "fc_norm": config.final_norm == "pooled",
        "act_layer": acts.get(config.activation, config.activation),
        "pos_embed": "learn" if config.position == "learned" else "none",
    }
    return name, args, eps


def _eva(w: Pretrained) -> tuple[str, dict[str, Any], float]:
    config, layout = w.config, timm.layout_of(w.config)
    gated = config.activation == "swiglu"
    allowed = ("gelu", "swiglu")
    refuse_unless(w, "timm", activation=allowed, pre_norm=(False,), patch_bias=(True,), final_norm=("tokens", "pooled"))
    name, eps = ("eva02_base_patch14_224", 1e-6)
    if config.rope == "dinov3":
        name, eps = ("vit_base_patch16_dinov3", 1e-5)
    prefix, covered = prefix_tokens(config)
    args = {
        "mlp_ratio": ratio(config.mlp, config.width),
        "qkv_bias": config.qkv_bias != "none",
        "qkv_fused": not layout.split_qkv,
        "qk_norm": config.qk_norm,
        "swiglu_mlp": gated,
        "swiglu_align_to": 1 if gated and layout.split_gate else 0,
        "scale_mlp": config.inner_norm != "none",
        "scale_attn_inner": config.inner_norm == "both",
        "init_values": config.layer_scale or None,
        "class_token": prefix > config.registers,
        "num_reg_tokens": config.registers,
        "no_embed_class": covered < prefix,
        "use_abs_pos_emb": config.position == "learned",
        "use_rot_pos_emb": config.rope != "none",
        "use_fc_norm": config.final_norm == "pooled",
        "use_post_transformer_norm": config.final_norm == "tokens",
        "ref_feat_shape": [16, 16] if config.rope == "eva" else None,
        "dynamic_img_size": False,
    }
    if config.qkv_bias == "qkv":
        args["attn_type"] = "rope"
    patch_grid(config, *w.image_size)
    return name, args, eps
