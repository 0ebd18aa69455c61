"""timm's names: VisionTransformer, the distilled DeiT, and Eva (EVA-02 and DINOv3)."""

import math
import re
from typing import Any, NamedTuple

from vit.config import ViTConfig
from vit.errors import UserError
from vit.models.vit import prefix_tokens
from vit.weights.mapping import MATRIX, SAME, Arrays, Rule, Table, dense, in_blocks, norm, patches, rule
from vit.weights.pretrained import CLIP, HALF, IMAGENET, Found, changed

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "silu": "swiglu"}
NO_NORM = "intern300m|radio"  # names of models without a last normalisation
HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16, 4096: 32}  # published widths whose heads aren't of 64 values


PIXELS = {  # mean and deviation by parts of the name, the first that is found
    r"large_patch14_clip.*laion2b": HALF,
    "sat493m": ((0.43, 0.411, 0.296), (0.213, 0.156, 0.143)),
    r"eva02|_clip_": CLIP,
    r"deit|dino|\.mae|ijepa": IMAGENET,
}


class Layout(NamedTuple):
    """What timm's names differ in between models that compute the same."""

    eva: bool
    """The class Eva: `gamma_1` for a scale, biases of queries and values apart."""
    split_qkv: bool
    """Three matrices for queries, keys and values."""
    split_gate: bool
    """SwiGLU's gate and value in two matrices."""


def layout_of(config: ViTConfig) -> Layout:
    """The layout in which timm's published models of this kind come."""
    eva = config.rope != "none" or config.qkv_bias == "qv"
    split = eva and config.inner_norm != "none"
    return Layout(eva, split, split or config.rope == "dinov3")


def knows(arrays: Arrays) -> bool:
    """Whether these are timm's names."""
    return "patch_embed.proj.weight" in arrays and "blocks.0.norm1.weight" in arrays


def table(config: ViTConfig, channels: int, classes: int, layout: Layout) -> Table:
    """timm's names for the parameters of a model."""
    rules = [rule("patch_embed/proj/kernel", "patch_embed.proj.weight", way=patches(config.patch, channels))]
    if config.patch_bias:
        rules.append(rule("patch_embed/proj/bias", "patch_embed.proj.bias"))
    if prefix_tokens(config)[0] > config.registers:
        rules.append(rule("cls_token", "cls_token"))
    if config.registers:
        rules.append(rule("registers", "dist_token" if config.distilled else "reg_token"))
    if config.position == "learned":
        rules.append(rule("pos_embed", "pos_embed"))
    if config.pre_norm:
        rules += norm("pre_norm", "norm_pre")
    rules += _block(config, layout)
    if config.final_norm != "none":
        rules += norm(*["norm" if config.final_norm == "tokens" else "fc_norm"] * 2)
    if config.pool == "map":
        rules += [rule("attn_pool/latent", "attn_pool.latent"), *_pool()]
    for name in ("head", "head_dist") if config.distilled else ("head",):
        rules += dense(name, name) if classes else []
    return Table(in_blocks(rules, config.depth))


def own_table(config: ViTConfig, channels: int, classes: int) -> Table:
    """The names in a file of our own."""
    return table(config, channels, classes, layout_of(config))


def _block(config: ViTConfig, layout: Layout) -> list[Rule]:
    ours, theirs = "blocks/{i}/", "blocks.{i}."
    rules = norm(ours + "norm1", theirs + "norm1") + norm(ours + "norm2", theirs + "norm2")
    if layout.split_qkv:
        names = [f"{theirs}attn.{x}_proj" for x in "qkv"]
        rules += dense(ours + "attn/qkv", *names, bias=config.qkv_bias == "qkv")
        if config.qkv_bias == "qv":
            rules.append(rule(ours + "attn/qv_bias", f"{names[0]}.bias", f"{names[2]}.bias"))
    else:
        rules += dense(ours + "attn/qkv", theirs + "attn.qkv", bias=config.qkv_bias == "qkv")
        if config.qkv_bias == "qv":
            rules.append(rule(ours + "attn/qv_bias", theirs + "attn.q_bias", theirs + "attn.v_bias"))
    if config.qk_norm:
        rules += norm(ours + "attn/q_norm", theirs + "attn.q_norm") + norm(ours + "attn/k_norm", theirs + "attn.k_norm")
    if config.inner_norm == "both":
        rules += norm(ours + "attn/norm", theirs + "attn.norm")
    rules += dense(ours + "attn/proj", theirs + "attn.proj")
    gates = (theirs + "mlp.fc1_g", theirs + "mlp.fc1_x")
    rules += dense(ours + "mlp/fc1", *(gates if config.activation == "swiglu" and layout.split_gate else [theirs + "mlp.fc1"]))
    if config.inner_norm != "none":
        rules += norm(ours + "mlp/norm", theirs + "mlp.norm")
    rules += dense(ours + "mlp/fc2", theirs + "mlp.fc2")
    if config.layer_scale:
        names = ("gamma_1", "gamma_2") if layout.eva else ("ls1.gamma", "ls2.gamma")
        rules += [rule(f"{ours}scale{k + 1}", theirs + name) for k, name in enumerate(names)]
    return rules


def _pool() -> list[Rule]:
    """Attention pooling: queries apart, keys and values side by side; here all are apart."""
    ours, theirs = "attn_pool/", "attn_pool."
    rules = dense(ours + "q", theirs + "q") + dense(ours + "proj", theirs + "proj") + norm(ours + "norm", theirs + "norm")
    rules += dense(ours + "mlp/fc1", theirs + "mlp.fc1") + dense(ours + "mlp/fc2", theirs + "mlp.fc2")
    kernels, biases = ((f"{ours}k/{x}", f"{ours}v/{x}") for x in ("kernel", "bias"))
    return [*rules, Rule(kernels, (theirs + "kv.weight",), MATRIX), Rule(biases, (theirs + "kv.bias",), SAME)]


def understand(found: Found) -> tuple[ViTConfig, Layout, dict[str, Any], list[str]]:
    """The model that the arrays belong to, what timm's `config.json` says beside, and what had to be assumed.

    Raises `UserError` where the arrays leave open what nothing else tells.
    """
    arrays, notes = found.arrays, []
    told = {**found.config.get("pretrained_cfg", {}), **found.config, **found.config.get("model_args", {})}
    weight = arrays["patch_embed.proj.weight"]
    if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
        what = f"a patch embedding of shape {weight.shape} isn't one of square patches"
        raise UserError(what, found.where, "give a ViT with square patches")
    config, layout = _config(found, told, notes)
    _refuse_gaps(found, config, told)
    size, covered = image_size(arrays.get("pos_embed"), config, told, found)
    extra = config.class_token and config.pool != "token"
    config = changed(config, class_token=extra, positioned=covered)
    mean, std = told.get("mean"), told.get("std")
    if mean is None or std is None:
        plain = not (config.layer_scale or config.registers or config.rope != "none")
        if known := next((pixels for pattern, pixels in PIXELS.items() if re.search(pattern, found.name)), None):
            mean, std = known
        else:
            mean, std = CLIP if config.pre_norm else HALF if plain else IMAGENET
        notes.append(f"no config.json tells mean and deviation of the pixels: taken as {mean} and {std}")
    labels, head = told.get("label_names"), arrays.get("head.weight")
    known = isinstance(labels, list) and head is not None and len(labels) == len(head)
    facts = {"image_size": size, "channels": weight.shape[1], "mean": mean, "std": std}
    return config, layout, {**facts, "class_names": labels if known else []}, notes


def _config(found: Found, told: dict[str, Any], notes: list[str]) -> tuple[ViTConfig, Layout]:
    """All but the image's size; a class token is told even where the pooling implies it."""
    arrays, first = found.arrays, "blocks.0."
    has = lambda name: name in arrays  # noqa: E731
    width, _, patch, _ = arrays["patch_embed.proj.weight"].shape
    second, one = arrays.get(first + "mlp.fc2.weight"), arrays.get(first + "mlp.fc1.weight")
    hidden = 4 * width if second is None else second.shape[-1]
    split_gate, split_qkv = has(first + "mlp.fc1_g.weight"), has(first + "attn.q_proj.weight")
    gated = split_gate or (one is not None and len(one) == 2 * hidden)
    qkv_bias = "qv" if has(first + "attn.q_bias") or has(first + "attn.q_proj.bias") else "none"
    if has(first + "attn.qkv.bias") or has(first + "attn.k_proj.bias"):
        qkv_bias = "qkv"
    rope = "none" if has("pos_embed") else "dinov3"
    if has("pos_embed") and gated and (qkv_bias == "qv" or split_qkv):
        rope = "eva"
    pre_norm, scaled = has("norm_pre.weight"), has(first + "gamma_1") or has(first + "ls1.gamma")
    config = ViTConfig(
        patch=patch,
        width=width,
        depth=1 + max(int(m[1]) for name in arrays if (m := re.match(r"blocks\.(\d+)\.", name))),
        heads=_heads(arrays, width, rope, told, found, notes),
        mlp=hidden,
        position="learned" if has("pos_embed") else "none",
        rope=rope,
        class_token=has("cls_token"),
        registers=arrays["reg_token"].shape[1] if has("reg_token") else int(has("dist_token")),
        distilled=has("dist_token"),
        pool=_pooling(arrays, told, notes),
        final_norm="pooled" if has("fc_norm.weight") else "tokens" if has("norm.weight") else "none",
        pre_norm=pre_norm,
        patch_bias=has("patch_embed.proj.bias"),
        qkv_bias=qkv_bias,
        qk_norm=has(first + "attn.q_norm.weight"),
        layer_scale=(told.get("init_values") or 1e-5) if scaled else 0.0,
        activation="swiglu" if gated else _activation(told, found.name),
        inner_norm="both" if has(first + "attn.norm.weight") else "mlp" if has(first + "mlp.norm.weight") else "none",
        eps=told.get("norm_eps", 1e-5 if pre_norm or rope == "dinov3" else 1e-6),
    )
    return config, Layout(rope != "none" or qkv_bias == "qv" or has(first + "gamma_1"), split_qkv, split_gate)


def _refuse_gaps(found: Found, config: ViTConfig, told: dict[str, Any]) -> None:
    """Raise `UserError` where an array that is missing would make another model, and one that timm doesn't mean."""
    name, given = found.name, {**found.config, **(found.config.get("model_args") or {})}
    registers, head = re.search(r"^vit_.*_reg(\d+)_", name), found.arrays.get("head.weight")
    rotary, dinov3 = config.rope == "dinov3", "blocks.0.gamma_1" in found.arrays
    lacks = {
        "pos_embed": rotary and not dinov3,
        "reg_token": config.registers != int(registers[1]) if registers else rotary and dinov3 and not config.registers,
        "the layer scales": re.search("^vit_.*_dinov[23]|^deit3_", name) and not config.layer_scale,
        "norm.weight": config.final_norm == "none" and given.get("final_norm") is not False and not re.search(NO_NORM, name),
    }
    if missing := [what for what, lacking in lacks.items() if lacking]:
        fix = "give the whole file as timm saved it"
        raise UserError(f"the weights don't fit: the file lacks {', '.join(missing)}", found.where, fix)
    have = {"depth": config.depth, "embed_dim": config.width, "num_classes": 0 if head is None else len(head)}
    if odd := next((key for key, value in have.items() if given.get(key, value) != value), ""):
        what = f"config.json says {odd} {given[odd]!r:.20}, the arrays have {have[odd]}"
        raise UserError(what, found.where, "give the file and the config.json that belong together")
    if told.get("use_post_norm") or "eva02_enormous" in name:
        fix = "give an EVA-02 of another size, whose blocks normalise first"
        raise UserError("EVA-02-E normalises after attention and MLP, which this ViT doesn't", found.where, fix)


def _activation(told: dict[str, Any], name: str) -> Any:
    given = told.get("act_layer")
    if given is not None and given not in ACTIVATIONS:
        what = f"there is no activation {given!r} here"
        raise UserError(what, "the model_args of config.json", f"give one of: {', '.join(ACTIVATIONS)}")
    if given is not None:
        return ACTIVATIONS[given]
    if "quickgelu" in name:
        return "quick_gelu"
    tanh = "siglip" in name and re.search(r"patch32|large_patch16.*_512|so400m_patch16|giantopt", name)
    return "gelu_tanh" if tanh else "gelu"


def _heads(arrays: Arrays, width: int, rope: str, told: dict[str, Any], found: Found, notes: list[str]) -> int:
    """Of fused queries, keys and values the arrays don't tell the heads."""
    if "blocks.0.attn.q_norm.weight" in arrays:
        return width // arrays["blocks.0.attn.q_norm.weight"].shape[0]
    if "num_heads" in told:
        return int(told["num_heads"])
    if "giantopt" in found.name:
        return 16
    if (rope == "none" and width in HEADS) or width == 4096:
        return HEADS[width]
    if width % 64:
        fix = 'give a config.json beside it that says {"architecture": NAME, "model_args": {"num_heads": NUMBER}}'
        raise UserError(f"the arrays don't tell how many heads share a width of {width}", found.where, fix)
    if not found.config:
        notes.append(f"nothing tells the number of heads: taken as {width // 64}, of 64 values each")
    return width // 64


def _pooling(arrays: Arrays, told: dict[str, Any], notes: list[str]) -> Any:
    if "attn_pool.latent" in arrays:
        return "map"
    given = {"avg": "mean", "token": "token"}.get(told.get("global_pool", ""))
    if given == "token" or (given == "mean" and "dist_token" not in arrays):
        return given
    if "cls_token" not in arrays or ("fc_norm.weight" in arrays and "dist_token" not in arrays):
        return "mean"
    if "pos_embed" not in arrays:
        notes.append("nothing tells the pooling: taken as the mean of the patches, timm's default for DINOv3")
        return "mean"
    return "token"


def image_size(table: Any, config: ViTConfig, told: dict[str, Any], found: Found) -> tuple[tuple[int, int], Any]:
    """The size in pixels that a table of positions is for, and which tokens it covers."""
    P, given = config.patch, told.get("img_size") or told.get("input_size")
    sides = [given, given] if isinstance(given, int) else list(given)[-2:] if given else []
    if table is None:
        return (sides[0] // P * P, sides[1] // P * P) if sides else (224 // P * P, 224 // P * P), "all"
    rows, prefix = table.shape[1], int(config.class_token) + config.registers
    for count, covered in ((0, "patches"), (prefix, "all"), (int(config.class_token), "class")):
        if sides and rows - count == (sides[0] // P) * (sides[1] // P):
            return (sides[0] // P * P, sides[1] // P * P), "all" if count == prefix else covered
    for count, covered in ((0, "patches"), (prefix, "all"), (int(config.class_token), "class")):
        side = math.isqrt(max(0, rows - count))
        if side and side * side == rows - count:
            return (side * P, side * P), "all" if count == prefix else covered
    fix = 'give a config.json beside it that says {"model_args": {"img_size": [HEIGHT, WIDTH]}}'
    raise UserError(f"{rows} positions are no square of patches", found.where, fix)
