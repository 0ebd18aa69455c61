"""`vit convert`: our parameters as files that timm, transformers or Google's code read and predict the same with."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from vit.config import ViTConfig, to_json
from vit.errors import UserError
from vit.models.positions import sincos_positions
from vit.models.vit import patch_grid, prefix_tokens
from vit.weights import files, hf_out, npz, timm_out
from vit.weights.mapping import to_theirs
from vit.weights.pretrained import Pretrained, changed, refuse_unless
from vit.weights.source import load

LAYOUTS = ("timm", "hf", "npz")


def convert(source: str, layout: str, out: Path) -> list[str]:
    """Write the weights that `source` names in another layout; a line on each thing to know. Raises what they raise."""
    if layout not in LAYOUTS:
        raise UserError(f"there is no layout {layout!r:.40}", "--to", f"give one of: {', '.join(LAYOUTS)}")
    if out.exists():
        raise UserError("there is something here already", str(out), "give another place, or remove it")
    return write(load(source), layout, out)


def write(w: Pretrained, layout: str, out: Path) -> list[str]:
    """Write weights: "timm" a folder (`timm.create_model("local-dir:OUT")`) or, named so, one `.safetensors` file; "hf" a
    folder for `from_pretrained`; "npz" one file.

    Raises `UserError` if the layout has no place for something of the model.
    """
    if w.config.stem != "patch":
        raise UserError("no other library has our convolutional stem", w.source, "give a model with --model.stem patch")
    if w.config.position == "sincos":
        w = learned(w)
    lines = [f"{w.source}: {note}" for note in w.notes]
    if w.head is not None:
        lines.append("only the backbone is written: no other layout has the head of a segmentation or detection")
        bare = {path: x for path, x in w.params.items() if not path.startswith("head")}
        w = w._replace(params=bare, classes=0, class_names=[], head=None)
    if layout == "npz":
        return lines + _npz(w, out)
    w, config, table, more = (hf_out if layout == "hf" else timm_out).describe(w)
    arrays = to_theirs(w.params, table, w.source)
    alone = layout == "timm" and out.suffix == ".safetensors"
    file = out if alone else out / "model.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_safetensors(file, arrays, note(w, "timm") if layout == "timm" else {})
    beside = {"config.json": config} | ({"preprocessor_config.json": hf_out.preprocessor(w)} if layout == "hf" else {})
    for name, value in ({} if alone else beside).items():
        (out / name).write_text(json.dumps(value, indent=1))
    return [*lines, *more, f"wrote {out}"]


def _npz(w: Pretrained, out: Path) -> list[str]:
    refuse_unless(
        w,
        ".npz",
        registers=(0,),
        pool=("token", "mean", "map"),
        final_norm=("tokens",),
        pre_norm=(False,),
        patch_bias=(True,),
        qkv_bias=("qkv",),
        qk_norm=(False,),
        layer_scale=(0.0,),
        activation=("gelu", "gelu_tanh"),
        inner_norm=("none",),
        rope=("none",),
        position=("learned",),
    )
    if out.suffix != ".npz":
        raise UserError(f"{out.name} is no name for such a file", str(out), "give a name that ends in .npz")
    lines = [] if w.config.eps == 1e-6 else [f"Google's code adds 1e-6 to the variance, this model {w.config.eps:g}"]
    if w.config.activation == "gelu":
        lines.append("the GELU here is exact, as in timm; Google's own code computes the tanh approximation")
    out.parent.mkdir(parents=True, exist_ok=True)
    arrays = to_theirs(w.params, npz.own_table(w.config, w.channels, w.classes), w.source)
    files.write_npz(out, arrays, note(w, "npz"))
    return [*lines, f"wrote {out}"]


def note(w: Pretrained, layout: str) -> dict[str, Any]:
    """What makes a file of ours tell by itself what it is."""
    facts = {name: getattr(w, name) for name in ("image_size", "channels", "classes", "class_names", "mean", "std")}
    return {"layout": layout, "config": to_json(w.config), **facts}


def learned(w: Pretrained) -> Pretrained:
    """Fixed sin-cos positions as a learned table of the same values."""
    config: ViTConfig = changed(w.config, position="learned")
    table = sincos_positions(*patch_grid(config, *w.image_size), config.width)
    prefix = prefix_tokens(config)[1]
    table = np.concatenate([np.zeros((1, prefix, config.width), np.float32), table], axis=1)
    return w._replace(config=config, params={**w.params, "pos_embed": table})
