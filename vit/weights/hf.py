"""The names of Hugging Face transformers: ViT, DeiT, MAE, DINOv2, DINOv3, and the image towers of CLIP and SigLIP."""

import math
import re
from typing import Any, NamedTuple

from vit.config import ViTConfig
from vit.errors import UserError
from vit.models.vit import prefix_tokens
from vit.weights.mapping import MATRIX, SAME, Arrays, Rule, Table, dense, in_blocks, norm, patches, rule, shaped
from vit.weights.pretrained import CLIP, HALF, IMAGENET, Found

RESAMPLED: dict[str, Any] = {"dinov2_with_registers": "cubic", "dinov3_vit": "cubic", "siglip2_vision_model": "linear"}
ACTIVATIONS: dict[str, Any] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


class Names(NamedTuple):
    """How a family calls its parts; `{b}` in a block's is the block."""

    prefix: str  # before all but the head, where there is one
    block: str
    q: tuple[str, str, str]
    proj: str
    norms: tuple[str, str]
    mlp: tuple[str, str]
    gated: tuple[str, ...]
    last: str
    patch: str = "embeddings.patch_embeddings.projection"
    token: str = "embeddings.cls_token"
    table: str = "embeddings.position_embeddings"


OLD = {
    "q": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "proj": "attention.output.dense",
}
VIT = {
    "block": "encoder.layer.{i}.",
    **OLD,
    "norms": ("layernorm_before", "layernorm_after"),
    "mlp": ("intermediate.dense", "output.dense"),
    "gated": (),
    "last": "layernorm",
}
DINO = {**VIT, "norms": ("norm1", "norm2"), "mlp": ("mlp.fc1", "mlp.fc2"), "gated": ("mlp.weights_in", "mlp.weights_out")}
TOWER = {
    "prefix": "vision_model.",
    "block": "encoder.layers.{i}.",
    "q": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "proj": "self_attn.out_proj",
    "norms": ("layer_norm1", "layer_norm2"),
    "mlp": ("mlp.fc1", "mlp.fc2"),
    "gated": (),
    "last": "post_layernorm",
    "patch": "embeddings.patch_embedding",
    "token": "embeddings.class_embedding",
    "table": "embeddings.position_embedding.weight",
}
NAMES = {
    "vit": Names(prefix="vit.", **VIT),
    "deit": Names(prefix="deit.", **VIT),
    "vit_mae": Names(prefix="vit.", **VIT),
    "dinov2": Names(prefix="dinov2.", **DINO),
    "dinov2_with_registers": Names(prefix="dinov2_with_registers.", **DINO),
    "dinov3_vit": Names(
        prefix="dinov3_vit.",
        block="layer.{i}.",
        q=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        proj="attention.o_proj",
        norms=("norm1", "norm2"),
        mlp=("mlp.up_proj", "mlp.down_proj"),
        gated=("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
        last="norm",
        patch="embeddings.patch_embeddings",
    ),
    "clip_vision_model": Names(**TOWER),
    "siglip_vision_model": Names(**TOWER),
    "siglip2_vision_model": Names(**TOWER),
}
# What a model calls its parts in memory since transformers 5, where that isn't what it writes.
VIT_MEMORY = {
    r"\blayers\.(\d+)\.attention\.o_proj": r"encoder.layer.\1.attention.output.dense",
    r"\blayers\.(\d+)\.mlp\.fc1": r"encoder.layer.\1.intermediate.dense",
    r"\blayers\.(\d+)\.mlp\.fc2": r"encoder.layer.\1.output.dense",
    r"(?<!encoder\.)\blayers\.(\d+)\.": r"encoder.layer.\1.",
}
QKV_MEMORY = {rf"attention\.{x[0]}_proj": f"attention.attention.{x}" for x in ("query", "key", "value")}
MEMORY = {
    **{kind: {**VIT_MEMORY, **QKV_MEMORY} for kind in ("vit", "deit", "vit_mae")},
    **{kind: {r"attention\.o_proj": "attention.output.dense", **QKV_MEMORY} for kind in ("dinov2", "dinov2_with_registers")},
    "dinov3_vit": {r"^model\.layer\.": "layer."},
}
REGISTERS = {"dinov2_with_registers", "dinov3_vit"}
SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "patch_size": 16}
# What a family's config.json may leave out, as transformers fills it in.
DEFAULTS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("vit", "deit", "vit_mae"), SIZES),
    **{kind: {**SIZES, "patch_size": 14, "layer_norm_eps": 1e-6} for kind in ("dinov2", "dinov2_with_registers")},
    "dinov3_vit": {**SIZES, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "layer_norm_eps": 1e-5},
    "clip_vision_model": {**SIZES, "patch_size": 32, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"},
    "siglip_vision_model": {**SIZES, "layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"},
    "siglip2_vision_model": {**SIZES, "layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh", "num_patches": 256},
}
HEADS = {
    "WithTeacher": "cls_classifier",
    "ForImageClassification": "classifier",
    "ModelWithProjection": "visual_projection",
}
UNUSED = {
    r"(.*\.)?embeddings\.mask_token$": "the mask token of pre-training",
    r"decoder\.": "the decoder of pre-training",
    r"(text_model|text_projection)\.": "the text tower",
    r"(logit_scale|logit_bias)$": "the scale of contrastive pre-training",
    r"(.*\.)?position_ids$": "position numbers",
    r"(.*\.)?rope_embeddings\.": "frequencies of rotary positions, which are computed",
}


def knows(found: Found) -> bool:
    """Whether these are names of transformers."""
    return any(re.search(r"(^|\.)embeddings\.(patch_embedding|cls_token)", name) for name in found.arrays)


def kind_of(found: Found) -> tuple[str, dict[str, Any]]:
    """The family's model_type, and the settings of its image tower. Raises `UserError` for one that isn't supported."""
    told = found.config
    vision = {**told["vision_config"], "projection_dim": told.get("projection_dim")} if "vision_config" in told else told
    kind = str(vision.get("model_type", told.get("model_type", "")))
    kind = {"clip": "clip_vision_model", "siglip": "siglip_vision_model", "siglip2": "siglip2_vision_model"}.get(kind, kind)
    if not told:
        what = "transformers' weights don't tell their model without its config.json"
        raise UserError(what, found.where, "give the whole folder, as save_pretrained wrote it")
    if kind not in NAMES:
        raise UserError(f"there is no model of the kind {kind!r:.40} here", found.where, f"give one of: {', '.join(NAMES)}")
    return kind, {**DEFAULTS[kind], **{name: value for name, value in vision.items() if value is not None}}


def understand(found: Found) -> tuple[ViTConfig, Table, dict[str, Any], list[str]]:
    """The model that a folder of transformers holds, its table, and what else the folder tells.

    Raises `UserError` for a family or a setting that our ViT doesn't have.
    """
    kind, told = kind_of(found)
    names = NAMES[kind]
    arrays = found.arrays
    prefix = names.prefix if any(name.startswith(names.prefix) for name in arrays) else ""
    image, patch = told.get("image_size", 224), told["patch_size"]
    sides = (image, image) if isinstance(image, int) else tuple(image)
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise UserError(f"image_size can't be {image!r:.40}", found.where, "give a config.json as save_pretrained writes it")
    if kind == "siglip2_vision_model":
        sides = (math.isqrt(told["num_patches"]) * patch,) * 2
    channels = told.get("num_channels", 3)
    config = _config(kind, told, found, prefix, names)
    heads = ("cls_classifier", "classifier", "visual_projection")
    head = next((name for name in heads if f"{name}.weight" in arrays), "")
    classes = arrays[f"{head}.weight"].shape[0] if head else 0
    made = str((found.config.get("architectures") or [""])[0])
    due = next((name for part, name in HEADS.items() if part in made and found.config.get("id2label") != {}), head)
    if due != head:
        fix = "give the whole file as its library saved it"
        raise UserError(f"the weights don't fit: {made} has {due}.weight, which the file lacks", found.where, fix)
    labels = found.config.get("id2label") or {}
    listed = [str(labels[str(i)]) for i in range(classes)] if set(labels) == {str(i) for i in range(classes)} else []
    default = (
        CLIP
        if kind.startswith("clip")
        else HALF
        if kind in ("vit", "siglip_vision_model", "siglip2_vision_model")
        else IMAGENET
    )
    mean, std = (found.preprocessor.get(f"image_{x}", default[i]) for i, x in enumerate(("mean", "std")))
    facts = {"image_size": sides, "channels": channels, "classes": classes, "mean": mean, "std": std, "class_names": listed}
    notes = [] if found.preprocessor else [f"no preprocessor_config.json tells mean and deviation: taken as {mean} and {std}"]
    return config, table(config, channels, classes, kind, prefix, head), facts, notes


def _config(kind: str, told: dict[str, Any], found: Found, prefix: str, names: Names) -> ViTConfig:
    arrays = found.arrays
    act = told.get("hidden_act", "gelu")
    block = prefix + names.block.replace("{i}", "0")
    gated = bool(names.gated) and f"{block}{names.gated[0]}.weight" in arrays
    if (act != "silu" if kind == "dinov3_vit" else False) if gated else act not in ACTIVATIONS:
        what = f"there is no activation {act!r:.40} here"
        raise UserError(what, found.where, f"give a model with one of: {', '.join(ACTIVATIONS)}")
    down = f"{block}{(names.gated if gated else names.mlp)[-1]}.weight"
    pool, final = "token", "tokens"
    if kind.startswith("clip"):
        pool, final = ("mean", "none") if "classifier.weight" in arrays else ("token", "pooled")
    elif kind.startswith("siglip"):
        pool = "mean" if "classifier.weight" in arrays or told.get("vision_use_head") is False else "map"
    elif kind.startswith("dinov2") and "classifier.weight" in arrays:
        pool = "token_mean"
    registers = told.get("num_register_tokens", 4 if kind == "dinov2_with_registers" else 0) if kind in REGISTERS else 0
    if kind == "dinov3_vit":
        wanted = {"query_bias": True, "value_bias": True, "proj_bias": True, "mlp_bias": True, "rope_theta": 100.0}
        if odd := next((name for name, value in wanted.items() if told.get(name, value) != value), ""):
            raise UserError(f"{odd} can't be {told[odd]}", found.where, "give a DINOv3 with the published settings")
    with_key = told.get("key_bias", False) if kind == "dinov3_vit" else True
    biased = told.get("qkv_bias", True)
    return ViTConfig(
        patch=told["patch_size"],
        width=told["hidden_size"],
        depth=told["num_hidden_layers"],
        heads=told["num_attention_heads"],
        mlp=arrays[down].shape[1] if down in arrays else told["intermediate_size"],
        position="none" if kind == "dinov3_vit" else "learned",
        rope="dinov3" if kind == "dinov3_vit" else "none",
        resample=RESAMPLED.get(kind, "cubic_torch"),
        positioned="class" if kind == "dinov2_with_registers" else "all",
        registers=1 if kind == "deit" else registers,
        distilled="cls_classifier.weight" in arrays,
        class_token=kind.startswith("clip") and pool == "mean",
        pool=pool,
        final_norm=final,
        pre_norm=kind.startswith("clip"),
        pre_logits=arrays[f"{prefix}pooler.dense.weight"].shape[0] if f"{prefix}pooler.dense.weight" in arrays else 0,
        patch_bias=not kind.startswith("clip"),
        qkv_bias=("qkv" if with_key else "qv") if biased else "none",
        layer_scale=told.get("layerscale_value", 1.0) if kind.startswith("dino") else 0.0,
        activation="swiglu" if gated else ACTIVATIONS[act],
        eps=told.get("layer_norm_eps", 1e-12),
    )


def table(config: ViTConfig, channels: int, classes: int, kind: str, prefix: str, head: str) -> Table:
    """transformers' names for the parameters of a model; `prefix` stands before all but the head."""
    names, D, E = NAMES[kind], config.width, prefix + "embeddings."
    tower = names.token.endswith("class_embedding")
    if kind == "siglip2_vision_model":
        rules = [rule("patch_embed/proj/kernel", f"{prefix}{names.patch}.weight", way=MATRIX)]
    else:
        way = patches(config.patch, channels)
        rules = [rule("patch_embed/proj/kernel", f"{prefix}{names.patch}.weight", way=way)]
    if config.patch_bias:
        rules.append(rule("patch_embed/proj/bias", f"{prefix}{names.patch}.bias"))
    if prefix_tokens(config)[0] > config.registers:
        rules.append(rule("cls_token", prefix + names.token, way=shaped((1, 1, D), (D,)) if tower else None))
    if config.registers:
        rules.append(rule("registers", E + ("distillation_token" if kind == "deit" else "register_tokens")))
    if config.position == "learned":
        rules.append(rule("pos_embed", prefix + names.table, way=shaped((1, -1, D), (-1, D)) if tower else None))
    if config.pre_norm:
        rules += norm("pre_norm", prefix + "pre_layrnorm")
    rules += _block(config, names, prefix)
    if config.final_norm != "none":
        rules += norm("norm" if config.final_norm == "tokens" else "fc_norm", prefix + names.last)
    if config.pool == "map":
        rules += _pool(prefix + "head.")
    if config.pre_logits:
        rules += dense("pre_logits", prefix + "pooler.dense")
    if classes:
        rules += dense("head", head, bias=head != "visual_projection")
        rules += dense("head_dist", "distillation_classifier") if config.distilled else []
    unused = dict(UNUSED)
    if kind.startswith("siglip") and config.pool == "mean" and classes:
        unused[re.escape(prefix + "head.")] = "the attention pooling, which the classifier doesn't read"
    if config.final_norm == "none":
        unused[re.escape(prefix + names.last)] = "the last normalisation, which the classifier doesn't read"
    return Table(in_blocks(rules, config.depth), unused, ("head/bias",) if head == "visual_projection" else ())


def _block(config: ViTConfig, names: Names, prefix: str) -> list[Rule]:
    ours, theirs = "blocks/{i}/", prefix + names.block
    q = [theirs + x for x in names.q]
    rules = dense(ours + "attn/qkv", *q, bias=config.qkv_bias == "qkv") + dense(ours + "attn/proj", theirs + names.proj)
    if config.qkv_bias == "qv":
        rules.append(rule(ours + "attn/qv_bias", f"{q[0]}.bias", f"{q[2]}.bias"))
    for k in range(2):
        rules += norm(f"{ours}norm{k + 1}", theirs + names.norms[k])
        if config.layer_scale:
            rules.append(rule(f"{ours}scale{k + 1}", f"{theirs}layer_scale{k + 1}.lambda1"))
    *first, second = names.gated if config.activation == "swiglu" else names.mlp
    return rules + dense(ours + "mlp/fc1", *(theirs + x for x in first)) + dense(ours + "mlp/fc2", theirs + second)


def _pool(theirs: str) -> list[Rule]:
    """Attention pooling as torch's MultiheadAttention has it: queries, keys and values in one."""
    ours = "attn_pool/"
    kernels, biases = (tuple(f"{ours}{x}/{part}" for x in "qkv") for part in ("kernel", "bias"))
    rules = [rule(ours + "latent", theirs + "probe"), Rule(kernels, (theirs + "attention.in_proj_weight",), MATRIX)]
    rules += [Rule(biases, (theirs + "attention.in_proj_bias",), SAME), *dense(ours + "proj", theirs + "attention.out_proj")]
    rules += norm(ours + "norm", theirs + "layernorm") + dense(ours + "mlp/fc1", theirs + "mlp.fc1")
    return rules + dense(ours + "mlp/fc2", theirs + "mlp.fc2")


def spelled(found: Found) -> Found:
    """The arrays under the names that transformers writes, where they have those of its models in memory."""
    kind, _ = kind_of(found)
    arrays: Arrays = {}
    for name, x in found.arrays.items():
        for old, new in MEMORY.get(kind, {}).items():
            name = re.sub(old, new, name)
        arrays[name] = x
    return found._replace(arrays=arrays)
