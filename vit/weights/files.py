"""Weights on a disk: safetensors, whole or in shards, and NumPy's .npz. Nothing is unpickled."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from vit.errors import UserError

PICKLES = {".pt", ".pth", ".bin", ".pkl", ".ckpt", ".tar"}
KEY = "vit"  # in a safetensors file's metadata: what this program knows beyond the arrays
INDEX = "model.safetensors.index.json"


def refuse_pickle(path: Path) -> None:
    """Raise `UserError` with the command that converts a PyTorch file where PyTorch is."""
    code = (
        f"import torch, safetensors.torch as s; d = torch.load('{path.name}', 'cpu', weights_only=True); "
        "[d := d.get(k, d) for k in ('model', 'state_dict', 'teacher')]; "
        "s.save_file({k: v.clone().contiguous() for k, v in d.items() if hasattr(v, 'clone')}, 'model.safetensors')"
    )
    what = "PyTorch's pickled files can run code when they are opened, so they are not read"
    raise UserError(what, str(path), f'run where PyTorch is: python -c "{code}"')


def weights_in(folder: Path) -> Path:
    """The weights file of a folder. Raises `UserError` if there's none, or only pickled ones, or several."""
    for name in ("model.safetensors", INDEX):
        if (folder / name).is_file():
            return folder / name
    files = sorted(p for p in folder.iterdir() if p.suffix in {".safetensors", ".npz"})
    if len(files) == 1:
        return files[0]
    for path in sorted(folder.iterdir()):
        if path.suffix in PICKLES and not files:
            refuse_pickle(path)
    what = f"there are several: {', '.join(p.name for p in files[:5])}" if files else "there are no weights in this folder"
    raise UserError(what, str(folder), "give a .safetensors or .npz file, or a folder with a model.safetensors")


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by name, and what this program noted when it wrote the file.

    Raises `UserError` for a file that isn't there, isn't whole, or is pickled.
    """
    if path.suffix in PICKLES:
        refuse_pickle(path)
    if not path.is_file():
        raise UserError("there is no such weights file", str(path), "give a file, a folder, timm:NAME or hf:ORG/NAME")
    if path.name.endswith(".index.json"):
        return _shards(path), {}
    if path.suffix == ".npz":
        return _npz(path)
    if re.search(r"-\d+-of-\d+\.safetensors$", path.name):
        what, fix = "this is one part of several", f"give the folder with all of them and {INDEX}"
        raise UserError(what, str(path), fix)
    if path.suffix == ".safetensors":
        return _safetensors(path)
    raise UserError(f"weights can't be in a {path.suffix or 'nameless'} file", str(path), "give .safetensors or .npz")


def _safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    import ml_dtypes  # noqa: F401  numpy learns bfloat16 by it
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads((file.metadata() or {}).get(KEY, "{}"))  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError) as error:
        raise _damaged(path, error) from error


def _shards(path: Path) -> dict[str, np.ndarray]:
    try:
        listed = {str(name): str(file) for name, file in json.loads(path.read_text())["weight_map"].items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(path, error) from error
    arrays: dict[str, np.ndarray] = {}
    for name in sorted(set(listed.values())):
        if Path(name).name != name or Path(name).suffix != ".safetensors":
            raise UserError(f"a shard can't be {name!r:.60}", str(path), "give an index of .safetensors files beside it")
        if not path.with_name(name).is_file():
            raise UserError(f"{name} is missing", str(path.parent), "bring the whole folder, as its library saved it")
        arrays |= _safetensors(path.with_name(name))[0]
    if wrong := sorted(listed.keys() ^ arrays.keys()):
        what = f"the shards and their index disagree on {', '.join(wrong[:5])}"
        raise UserError(what, str(path), "bring the whole folder, as its library saved it")
    return arrays


def _npz(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            comment = archive.comment.decode()
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: _bfloat16(file[name]) for name in file.files}
        return arrays, json.loads(comment)[KEY] if comment.startswith("{") else {}
    except (ValueError, OSError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise _damaged(path, error) from error


def _bfloat16(x: np.ndarray) -> np.ndarray:
    """big_vision's bfloat16 arrays come back as raw two-byte values."""
    import ml_dtypes

    if not isinstance(x, np.ndarray):
        raise ValueError("not all of its members are arrays")
    return x.view(ml_dtypes.bfloat16) if x.dtype == np.dtype("V2") else x


def _damaged(path: Path, error: Exception) -> UserError:
    what = f"the file can't be read: {str(error) or type(error).__name__:.120}"
    return UserError(what, str(path), "bring an undamaged copy, as its library saved it")


def write_safetensors(path: Path, arrays: dict[str, np.ndarray], ours: dict[str, Any]) -> None:
    """As PyTorch's libraries read it; `ours` goes into the metadata."""
    from safetensors.numpy import save_file

    save_file(arrays, path, metadata={"format": "pt", KEY: json.dumps(ours)})


def write_npz(path: Path, arrays: dict[str, np.ndarray], ours: dict[str, Any]) -> None:
    """As NumPy reads it; `ours` goes into the archive's comment, which NumPy passes over."""
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    comment = json.dumps({KEY: ours}).encode()
    if len(comment) > zipfile.ZIP_MAX_COMMENT:  # thousands of classes
        comment = json.dumps({KEY: {**ours, "class_names": []}}).encode()
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = comment


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there's no such file. Raises `UserError` for anything else."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise _damaged(path, error) from error
    return value if isinstance(value, dict) else {}
