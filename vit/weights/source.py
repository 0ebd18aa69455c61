"""`load`: a file, a folder or a name on the hub → parameters of our one ViT."""

from pathlib import Path
from typing import Any, cast

import jax
from flax import nnx

from vit.config import EomtHead, ViTConfig, YolosHead, from_json, validate
from vit.errors import UserError
from vit.models.eomt import Eomt
from vit.models.vit import Params, ViT, split
from vit.models.yolos import Yolos
from vit.weights import eomt, files, hf, npz, timm, yolos
from vit.weights.hub import fetch
from vit.weights.mapping import Table, to_ours
from vit.weights.pretrained import Found, Pretrained


def load(text: str) -> Pretrained:
    """Pretrained weights: a `.safetensors` or `.npz` file, a folder with one, a run of ours, `timm:NAME` or `hf:ORG/NAME`.

    Raises `UserError` if there are none, they are pickled or damaged, or don't fit our ViT to the last key.
    """
    from vit.training.storage import open_folder
    from vit.weights.runs import is_run, load_run

    if "://" in text or is_run(Path(text).expanduser()):
        folder = open_folder(text)
        if is_run(folder):
            return load_run(folder)
        raise UserError("there is no run here", text, "give the folder of a run, as runs/digits-s0")
    found = find(text)
    try:
        return _understood(found)
    except UserError:
        raise
    except (TypeError, ValueError, IndexError, AttributeError, KeyError) as error:
        what = f"the arrays or the config.json beside them make no sense: {type(error).__name__}"
        raise UserError(what, found.where, "bring an undamaged copy, as its library saved it") from error


def _understood(found: Found) -> Pretrained:
    if found.ours:
        return _own(found)
    if timm.knows(found.arrays):
        config, kind, facts, notes = timm.understand(found)
        classes = found.arrays["head.weight"].shape[0] if "head.weight" in found.arrays else 0
        return fill(found, config, timm.table(config, facts["channels"], classes, kind), {"classes": classes, **facts}, notes)
    if found.config.get("model_type") == "eomt":
        return fill(found, *eomt.understand(found))
    if found.config.get("model_type") == "yolos":
        found = yolos.spelled(found)
        return fill(found, *yolos.understand(found))
    if hf.knows(found):
        found = hf.spelled(found)
        return fill(found, *hf.understand(found))
    if npz.knows(found.arrays) is not None:
        config, table, facts, arrays, notes = npz.understand(found)
        return fill(found._replace(arrays=arrays), config, table, facts, notes)
    names = ", ".join(sorted(found.arrays)[:5])
    what = f"these are no names of timm, transformers or google-research: {names} …"
    raise UserError(what, found.where, "give weights of a family that the README lists")


def fill(found: Found, config: ViTConfig, table: Table, facts: dict[str, Any], notes: list[str]) -> Pretrained:
    """Map what was found by a table."""
    validate(config, found.where)
    wanted = shapes(config, facts["image_size"], facts["channels"], facts["classes"], facts.get("head"))
    params, left_out = to_ours(found.arrays, table, wanted, found.where)
    mean, std = (tuple(float(x) for x in facts[name]) for name in ("mean", "std"))
    if not len(mean) == len(std) in (1, facts["channels"]):
        what = f"{len(mean)} means and {len(std)} deviations don't belong to {facts['channels']} channels"
        raise UserError(what, found.where, "give a config.json with one of each a channel")
    return Pretrained(params, config, **{**facts, "mean": mean, "std": std}, source=found.where, notes=notes + left_out)


def shapes(
    config: ViTConfig, image_size: tuple[int, int], channels: int, classes: int, head: EomtHead | YolosHead | None = None
) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a model, by path."""

    def build() -> Params:
        shape: Any = {"image_size": image_size, "channels": channels, "classes": classes, "rngs": nnx.Rngs(0)}
        if isinstance(head, YolosHead):
            return split(Yolos(config, head, **shape))[1]
        return split(Eomt(config, head, **shape) if head else ViT(config, **shape))[1]

    return {path: x.shape for path, x in jax.eval_shape(build).items()}


def find(text: str) -> Found:
    """Read what `text` names, without understanding it yet."""
    path = fetch(text) if text.startswith(("timm:", "hf:")) else Path(text).expanduser()
    file = files.weights_in(path) if path.is_dir() else path
    arrays, ours = files.read(file)
    beside = {name: files.read_json(file.with_name(f"{name}.json")) for name in ("config", "preprocessor_config")}
    config = beside["config"]
    known = text.partition(":")[2] if path != Path(text).expanduser() else ""
    name = str(config.get("architecture") or known or (file.parent.name if file.stem.startswith("model") else file.stem))
    return Found(arrays, config, beside["preprocessor_config"], ours, name, str(file))


def _own(found: Found) -> Pretrained:
    """A file that `vit convert` wrote, which tells by itself what it is."""
    ours = found.ours
    try:
        config = cast(ViTConfig, from_json(ours["config"], found.where))
        facts = {name: ours[name] for name in ("channels", "classes", "class_names", "mean", "std")}
        facts["image_size"] = tuple(ours["image_size"])
        table = {"timm": timm.own_table, "npz": npz.own_table}[ours["layout"]](config, facts["channels"], facts["classes"])
    except (KeyError, TypeError, AttributeError) as error:
        what = f"what vit noted in the file can't be read: {type(error).__name__} {error}"
        raise UserError(what, found.where, "bring an undamaged copy, or convert the run again") from error
    return fill(found, config, table, facts, [])
