"""A model of ours as transformers builds it: the family that computes the same, its config.json and its names."""

from typing import Any

import numpy as np

from vit.errors import UserError
from vit.models.vit import prefix_tokens
from vit.weights import hf
from vit.weights.mapping import Table
from vit.weights.pretrained import Pretrained, changed, covering, refuse_unless

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu", "swiglu": "silu"}


def describe(w: Pretrained) -> tuple[Pretrained, dict[str, Any], Table, list[str]]:
    """The weights as transformers has them, its config.json, its names, and what to know.

    Raises `UserError` for a model that transformers doesn't have.
    """
    refuse_unless(w, "transformers", qk_norm=(False,), inner_norm=("none",))
    config, classes = w.config, w.classes
    token = prefix_tokens(config)[0] > config.registers
    vit_or_deit = token and not (config.rope == "dinov3" or config.pre_norm or config.layer_scale)
    if w.image_size[0] != w.image_size[1] and not vit_or_deit:
        fix = "give a model of square images, or another layout"
        raise UserError("transformers keeps positions of this family for square images alone", w.source, fix)
    if config.rope == "dinov3" and token:
        return _dinov3(w)
    refuse_unless(w, "transformers", rope=("none",), position=("learned",), qkv_bias=("qkv", "none"))
    if config.pre_norm:
        return _clip(w)
    refuse_unless(w, "transformers", patch_bias=(True,), final_norm=("tokens",))
    if config.layer_scale:
        return _dinov2(w)
    refuse_unless(w, "transformers", activation=("gelu", "gelu_tanh", "quick_gelu"))
    if not token and config.pool in ("map", "mean"):
        return _siglip(w)
    refuse_unless(w, "transformers", pool=("token",), registers=(0, 1))
    w, kind = covering(w, "all"), "deit" if config.registers else "vit"
    name = {"vit": "ViT", "deit": "DeiT"}[kind]
    if config.pre_logits:
        refuse_unless(w, "transformers", pre_logits=(config.width,))
        if classes:
            raise UserError("transformers has no head behind the tanh layer", w.source, "choose another layout, as npz")
    head = "ForImageClassificationWithTeacher" if config.distilled else "ForImageClassification"
    told = _common(w, kind, f"{name}{head if classes else 'Model'}") | {"intermediate_size": config.mlp, "qkv_bias": _biased(w)}
    told |= {"pooler_output_size": config.pre_logits or config.width, "pooler_act": "tanh"}
    classifier = "cls_classifier" if config.distilled else "classifier"
    table = hf.table(w.config, w.channels, classes, kind, f"{kind}." if classes else "", classifier)
    pooler = [] if classes or config.pre_logits else ["load it with add_pooling_layer=False: this model has no pooler"]
    return w, told, table, pooler


def preprocessor(w: Pretrained) -> dict[str, Any]:
    """preprocessor_config.json: what the pixels are scaled by."""
    size = {"height": w.image_size[0], "width": w.image_size[1]}
    scaling = {"do_normalize": True, "do_rescale": True, "do_resize": True, "rescale_factor": 1 / 255}
    return {**scaling, "image_processor_type": "ViTImageProcessor", "image_mean": w.mean, "image_std": w.std, "size": size}


def _common(w: Pretrained, kind: str, architecture: str) -> dict[str, Any]:
    config = w.config
    told = {
        "model_type": kind,
        "architectures": [architecture],
        "dtype": "float32",
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "patch_size": config.patch,
        "image_size": w.image_size[0] if w.image_size[0] == w.image_size[1] else list(w.image_size),
        "num_channels": w.channels,
        "layer_norm_eps": config.eps,
        "hidden_act": ACTIVATIONS[config.activation],
    }
    return told | _labels(w)


def _labels(w: Pretrained) -> dict[str, Any]:
    names = w.class_names or [f"LABEL_{i}" for i in range(w.classes)]
    if not w.classes:
        return {}
    return {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}


def _biased(w: Pretrained) -> bool:
    return w.config.qkv_bias != "none"


def _headless(w: Pretrained, family: str) -> None:
    if w.classes:
        raise UserError(f"transformers' {family} has no head", w.source, "choose --to timm, or a model without a head")


def _dinov3(w: Pretrained) -> tuple[Pretrained, dict[str, Any], Table, list[str]]:
    refuse_unless(w, "transformers", position=("none",), pre_norm=(False,), final_norm=("tokens",), patch_bias=(True,))
    refuse_unless(w, "transformers", qkv_bias=("qv", "qkv"), activation=("gelu", "gelu_tanh", "swiglu"), pre_logits=(0,))
    _headless(w, "DINOv3")
    config = w.config
    if not config.layer_scale or not config.registers:
        raise UserError("transformers' DINOv3 has layer scales and registers", w.source, "choose --to timm")
    told = _common(w, "dinov3_vit", "DINOv3ViTModel")
    told |= {"intermediate_size": config.mlp, "use_gated_mlp": config.activation == "swiglu", "rope_theta": 100.0}
    told |= {"num_register_tokens": config.registers, "layerscale_value": config.layer_scale}
    told |= {"query_bias": True, "key_bias": config.qkv_bias == "qkv", "value_bias": True}
    table = hf.table(config, w.channels, 0, "dinov3_vit", "", "")
    lines = [] if config.pool == "token" else ["its pooler_output is the class token, this model pools otherwise"]
    return w, told, _with_mask_token(table, "", (1, 1, config.width)), lines


def _with_mask_token(table: Table, prefix: str, shape: tuple[int, ...]) -> Table:
    return table._replace(blank={f"{prefix}embeddings.mask_token": np.zeros(shape, np.float32)})


def _dinov2(w: Pretrained) -> tuple[Pretrained, dict[str, Any], Table, list[str]]:
    refuse_unless(w, "transformers", pool=("token", "token_mean"), distilled=(False,), pre_logits=(0,))
    w = covering(w, "class" if w.config.registers else "all")
    if w.classes and w.config.pool == "token":  # its head reads the patches' mean too
        kernel = w.params["head/kernel"]
        params = {**w.params, "head/kernel": np.concatenate([kernel, np.zeros_like(kernel)])}
        w = w._replace(params=params, config=changed(w.config, pool="token_mean"))
    config = w.config
    gated = config.activation == "swiglu"
    kind = "dinov2_with_registers" if config.registers else "dinov2"
    name = "Dinov2WithRegisters" if config.registers else "Dinov2"
    # The ratio is whole there; the gated MLP's width is 2/3 of the ratio's, rounded up to a multiple of 8.
    ratio = round((config.mlp * 3 / 2 if gated else config.mlp) / config.width)
    hidden = config.width * ratio
    if ((int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden) != config.mlp:
        raise UserError(f"transformers' DINOv2 has no MLP of {config.mlp}", w.source, "choose --to timm")
    told = _common(w, kind, f"{name}{'ForImageClassification' if w.classes else 'Model'}")
    told |= {"mlp_ratio": ratio, "use_swiglu_ffn": gated, "layerscale_value": config.layer_scale, "qkv_bias": _biased(w)}
    told |= {"hidden_act": "gelu"} if gated else {}
    told |= {"num_register_tokens": config.registers} if config.registers else {"use_mask_token": True}
    prefix = f"{kind}." if w.classes else ""
    table = hf.table(config, w.channels, w.classes, kind, prefix, "classifier")
    return w, told, _with_mask_token(table, prefix, (1, config.width)), []


def _clip(w: Pretrained) -> tuple[Pretrained, dict[str, Any], Table, list[str]]:
    refuse_unless(w, "transformers", pool=("token",), registers=(0,), layer_scale=(0.0,), patch_bias=(False,), pre_logits=(0,))
    refuse_unless(w, "transformers", activation=("gelu", "gelu_tanh", "quick_gelu"), final_norm=("tokens", "pooled"))
    refuse_unless(w, "transformers", qkv_bias=("qkv",))
    w = covering(w, "all")
    if w.config.final_norm == "tokens":  # of the class token it is the same after pooling
        params = {path.replace("norm/", "fc_norm/") if path.startswith("norm/") else path: x for path, x in w.params.items()}
        w = w._replace(params=params, config=changed(w.config, final_norm="pooled"))
    told = _common(w, "clip_vision_model", "CLIPVisionModelWithProjection" if w.classes else "CLIPVisionModel")
    told |= {"intermediate_size": w.config.mlp, "projection_dim": w.classes or w.config.width}
    head = "visual_projection" if w.classes else ""
    table = hf.table(w.config, w.channels, w.classes, "clip_vision_model", "vision_model." if w.classes else "", head)
    return w, told, table, []


def _siglip(w: Pretrained) -> tuple[Pretrained, dict[str, Any], Table, list[str]]:
    refuse_unless(w, "transformers", registers=(0,), pre_logits=(0,), qkv_bias=("qkv",))
    config = w.config
    if config.pool == "map":
        _headless(w, "SigLIP with attention pooling")
    vision = _common(w, "siglip_vision_model", "SiglipVisionModel") | {"intermediate_size": config.mlp}
    vision["vision_use_head"] = config.pool == "map"
    if not w.classes:
        return w, vision, hf.table(config, w.channels, 0, "siglip_vision_model", "", ""), []
    vision = {name: x for name, x in vision.items() if name not in ("id2label", "label2id", "architectures")}
    text = {"model_type": "siglip_text_model", "hidden_size": config.width, "num_hidden_layers": 1}
    told = {"model_type": "siglip", "architectures": ["SiglipForImageClassification"], "vision_config": vision, **_labels(w)}
    table = hf.table(config, w.channels, w.classes, "siglip_vision_model", "vision_model.", "classifier")
    return w, {**told, "text_config": text}, table, []
