"""The names of transformers' YolosForObjectDetection (arXiv 2106.00666)."""

from typing import Any

import numpy as np

from vit.config import ViTConfig, YolosHead, validate
from vit.errors import UserError
from vit.weights.mapping import MATRIX, Rule, Table, Way, dense, in_blocks, norm, patches, rule
from vit.weights.pretrained import IMAGENET, Found

# What config.json may leave out, as transformers fills it in.
DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": (512, 864),
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
    "num_detection_tokens": 100,
    "use_mid_position_embeddings": True,
    "class_cost": 1,
    "bbox_loss_coefficient": 5,
    "giou_loss_coefficient": 2,
    "eos_coefficient": 0.1,
}
ACTIVATIONS: dict[str, Any] = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
MIDDLE = "vit.encoder.mid_position_embeddings"
TURNED = [1, 0, 3, 2]  # centre x, centre y, width, height as ours has them
# In memory transformers 5 calls it otherwise than in its files.
MEMORY = {"vit.encoder.interpolation.mid_position_embeddings": MIDDLE}


def understand(found: Found) -> tuple[ViTConfig, Table, dict[str, Any], list[str]]:
    """The model that a folder holds, its table, and what else the folder tells, `head` among it.

    Raises `UserError` for a setting that our model doesn't have.
    """
    told = {**DEFAULTS, **{name: value for name, value in found.config.items() if value is not None}}
    arrays, sides, patch = found.arrays, told["image_size"], told["patch_size"]
    sides = (sides, sides) if isinstance(sides, int) else tuple(sides)
    if told["hidden_act"] not in ACTIVATIONS:
        what = f"there is no activation {told['hidden_act']!r:.40} here"
        raise UserError(what, found.where, f"give a model with one of: {', '.join(ACTIVATIONS)}")
    if not isinstance(patch, int):
        if len(set(patch)) != 1:
            raise UserError(f"patches of {patch} aren't square", found.where, "give a model with square patches")
        patch = patch[0]
    sides = tuple(side // patch * patch for side in sides)  # as transformers has it: YOLOS-Ti says 800 x 1333
    config = ViTConfig(
        patch=patch,
        width=told["hidden_size"],
        depth=told["num_hidden_layers"],
        heads=told["num_attention_heads"],
        mlp=told["intermediate_size"],
        resample="cubic_torch",
        qkv_bias="qkv" if told["qkv_bias"] else "none",
        activation=ACTIVATIONS[told["hidden_act"]],
        eps=told["layer_norm_eps"],
    )
    head = YolosHead(
        queries=told["num_detection_tokens"],
        middle=bool(told["use_mid_position_embeddings"]),
        class_weight=told["class_cost"],
        box_weight=told["bbox_loss_coefficient"],
        giou_weight=told["giou_loss_coefficient"],
        no_object=told["eos_coefficient"],
    )
    validate(head, found.where)
    last, labels = "class_labels_classifier.layers.2.bias", told.get("id2label") or {}
    classes = len(arrays[last]) - 1 if last in arrays else len(labels)
    names = [str(labels[str(i)]) for i in range(classes)] if set(labels) == {str(i) for i in range(classes)} else []
    facts: dict[str, Any] = {"image_size": sides, "channels": told["num_channels"], "classes": classes, "class_names": names}
    mean, std = (found.preprocessor.get(f"image_{x}", IMAGENET[i]) for i, x in enumerate(("mean", "std")))
    notes = [] if found.preprocessor else [f"no preprocessor_config.json tells mean and deviation: taken as {mean} and {std}"]
    return config, table(config, head, told["num_channels"]), {**facts, "mean": mean, "std": std, "head": head}, notes


def spelled(found: Found) -> Found:
    """The arrays under the names that transformers writes, where they have those of its models in memory."""
    return found._replace(arrays={MEMORY.get(name, name): x for name, x in found.arrays.items()})


def table(config: ViTConfig, head: YolosHead, channels: int) -> Table:
    """transformers' names for the parameters. Detection tokens and their positions, which are only ever added, become one."""
    E, Q, ours, theirs = "vit.embeddings.", head.queries, "blocks/{i}/", "vit.encoder.layer.{i}."
    biased, positions = config.qkv_bias == "qkv", E + "position_embeddings"
    rules: list[Rule] = [
        rule("patch_embed/proj/kernel", E + "patch_embeddings.projection.weight", way=patches(config.patch, channels)),
        rule("patch_embed/proj/bias", E + "patch_embeddings.projection.bias"),
        rule("cls_token", E + "cls_token"),
        rule("pos_embed", positions, way=_read(lambda xs: xs[0][:, :-Q])),
        rule("head/tokens", E + "detection_tokens", positions, way=_read(lambda xs: xs[0] + xs[1][:, -Q:])),
        *dense(ours + "attn/qkv", *(f"{theirs}attention.attention.{x}" for x in ("query", "key", "value")), bias=biased),
        *dense(ours + "attn/proj", theirs + "attention.output.dense"),
        *norm(ours + "norm1", theirs + "layernorm_before"),
        *norm(ours + "norm2", theirs + "layernorm_after"),
        *dense(ours + "mlp/fc1", theirs + "intermediate.dense"),
        *dense(ours + "mlp/fc2", theirs + "output.dense"),
        *norm("norm", "vit.layernorm"),
    ]
    if head.middle:  # their detection tokens come last, ours first
        first = _read(lambda xs: np.concatenate([xs[0][:, 0, -Q:], xs[0][:, 0, :-Q]], axis=1))
        rules.append(rule("head/middle", MIDDLE, way=first))
    for k in range(3):
        rules += dense(f"head/classify/layers/{k}", f"class_labels_classifier.layers.{k}")
    for k in range(2):
        rules += dense(f"head/box/layers/{k}", f"bbox_predictor.layers.{k}")
    last, turned = "bbox_predictor.layers.2.", _read(lambda xs: xs[0][TURNED])
    rules.append(rule("head/box/layers/2/kernel", last + "weight", way=_read(lambda xs: MATRIX.read([xs[0][TURNED]]))))
    return Table(in_blocks([*rules, rule("head/box/layers/2/bias", last + "bias", way=turned)], config.depth))


def _read(read: Any) -> Way:
    """A way in: models with a head are not written."""

    def write(x: np.ndarray, n: int) -> Any:
        raise NotImplementedError

    return Way(read, write)
