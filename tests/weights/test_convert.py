"""Weights out and in again, without torch: every layout, and what a file may have wrong."""

import json
import os
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vit.config import ViTConfig
from vit.errors import UserError
from vit.weights import Pretrained, load
from vit.weights.convert import write
from vit.weights.source import shapes

TINY = {"patch": 4, "width": 24, "depth": 2, "heads": 2, "mlp": 40}


def pretrained(classes: int = 3, image_size: tuple[int, int] = (16, 16), **changes) -> Pretrained:
    """A model of random parameters."""
    config, rng = ViTConfig(**{**TINY, **changes}), np.random.default_rng(0)
    params = {p: rng.standard_normal(s).astype(np.float32) for p, s in shapes(config, image_size, 3, classes).items()}
    names = [f"class {i}" for i in range(classes)]
    return Pretrained(params, config, image_size, 3, classes, names, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), "here", [])


FAMILIES = {
    "plain": {},
    "mean": {"pool": "mean", "final_norm": "pooled", "class_token": True},
    "map": {"pool": "map", "activation": "gelu_tanh"},
    "registers": {"registers": 4, "positioned": "patches", "layer_scale": 1e-5, "qkv_bias": "none"},
    "distilled": {"registers": 1, "distilled": True},
    "clip": {"pre_norm": True, "patch_bias": False, "activation": "quick_gelu", "eps": 1e-5},
    "dinov3": {
        "position": "none", "rope": "dinov3", "registers": 4, "qkv_bias": "qv", "layer_scale": 1e-5, "pool": "mean",
        "class_token": True, "activation": "swiglu", "eps": 1e-5,
    },
    "eva": {"rope": "eva", "qkv_bias": "qv", "activation": "swiglu", "inner_norm": "both", "qk_norm": True},
}  # fmt: skip


def same(a: Pretrained, b: Pretrained) -> None:
    assert a.params.keys() == b.params.keys()
    for path, x in a.params.items():
        assert np.array_equal(x, b.params[path]), path


@pytest.mark.parametrize("name", FAMILIES)
def test_timms_names_and_back(name, tmp_path: Path):
    w = pretrained(image_size=(16, 24), **FAMILIES[name])
    write(w, "timm", tmp_path / "a.safetensors")
    got = load(str(tmp_path / "a.safetensors"))
    same(w, got)
    assert got._replace(params={}, source="here") == w._replace(params={})
    write(w, "timm", tmp_path / "folder")  # what timm itself goes by is enough too
    file = tmp_path / "folder" / "model.safetensors"
    save_file(load_file(file), file)
    got = load(str(tmp_path / "folder"))
    same(w, got)
    assert (got.config, got.image_size, got.mean, got.std) == (w.config, w.image_size, w.mean, w.std)
    assert got.class_names == w.class_names


@pytest.mark.parametrize(
    "changes",
    [
        {"resample": "cubic_torch"},
        {"resample": "cubic_torch", "image_size": (16, 24)},
        {"registers": 1, "distilled": True, "resample": "cubic_torch"},
        {"pool": "map", "resample": "cubic_torch"},
        {"pool": "mean", "resample": "cubic_torch", "activation": "gelu_tanh"},
        {"pool": "token_mean", "layer_scale": 0.5, "resample": "cubic_torch", "mlp": 48},
        {"pool": "token_mean", "layer_scale": 0.5, "registers": 4, "positioned": "class", "mlp": 48},
        {**FAMILIES["dinov3"], "pool": "token", "class_token": False},
        {**FAMILIES["clip"], "final_norm": "pooled", "resample": "cubic_torch"},
    ],
)
def test_transformers_names_and_back(changes, tmp_path: Path):
    w = pretrained(classes=0 if changes.get("rope") or changes.get("pool") == "map" or "pre_norm" in changes else 3, **changes)
    write(w, "hf", tmp_path / "out")
    got = load(str(tmp_path / "out"))
    same(w, got)
    assert (got.config, got.image_size, got.mean, got.std) == (w.config, w.image_size, w.mean, w.std)
    assert got.class_names == w.class_names


def test_big_visions_fixed_positions(tmp_path: Path):
    w = pretrained(pool="mean", image_size=(224, 224))
    write(w, "npz", tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        arrays = {f"params/{name}": x for name, x in file.items() if "pos_embedding" not in name}
    spelled = {"Attention_1": "Attention_0", "MlpBlock_3": "MlpBlock_0", "LayerNorm_2": "LayerNorm_1"}
    for old, new in spelled.items():
        arrays = {name.replace(old, new): x for name, x in arrays.items()}
    np.savez(tmp_path / "b.npz", **arrays)
    got = load(str(tmp_path / "b.npz"))
    same(w._replace(params={name: x for name, x in w.params.items() if name != "pos_embed"}), got)
    assert (got.config.position, got.config.pool, got.image_size) == ("sincos", "mean", (224, 224))
    assert any("fixed sin-cos" in note for note in got.notes)
    arrays["params/cls"] = np.zeros((1, 1, 24), np.float32)
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(UserError, match="no plain ViT"):
        load(str(tmp_path / "c.npz"))


@pytest.mark.parametrize("changes", [{"activation": "gelu_tanh"}, FAMILIES["map"], {"pool": "mean"}, {"positioned": "patches"}])
def test_googles_names_and_back(changes, tmp_path: Path):
    w = pretrained(**changes)
    write(w, "npz", tmp_path / "a.npz")
    got = load(str(tmp_path / "a.npz"))
    same(w, got)
    assert got._replace(params={}, source="here") == w._replace(params={})
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        arrays = dict(file)
    np.savez(tmp_path / "b.npz", **arrays)  # without what we noted: Google's own file
    got = load(str(tmp_path / "b.npz"))
    same(w, got)
    assert got.config.activation == "gelu_tanh"
    assert got.config.positioned == w.config.positioned


def test_fixed_positions_become_a_table(tmp_path: Path):
    w = pretrained(position="sincos")
    write(w, "timm", tmp_path / "a.safetensors")
    got = load(str(tmp_path / "a.safetensors"))
    assert got.config.position == "learned"
    assert got.params["pos_embed"].shape == (1, 17, 24)
    assert not got.params["pos_embed"][:, 0].any()


def folder(tmp_path: Path, **changes) -> tuple[Path, dict[str, np.ndarray]]:
    write(pretrained(**changes), "timm", tmp_path / "w")
    file = tmp_path / "w" / "model.safetensors"
    return file, load_file(file)


def test_every_key_left_over_is_listed(tmp_path: Path):
    file, arrays = folder(tmp_path)
    odd = {**arrays, "blocks.0.attn.gate.weight": np.zeros(3, np.float32), "teacher": np.zeros(2, np.float32)}
    del odd["blocks.1.mlp.fc1.bias"]
    save_file(odd, file)
    with pytest.raises(UserError) as error:
        load(str(file.parent))
    assert "the file lacks blocks.1.mlp.fc1.bias" in error.value.what
    assert "nothing here takes blocks.0.attn.gate.weight, teacher" in error.value.what


def test_another_shape_is_named(tmp_path: Path):
    file, arrays = folder(tmp_path)
    save_file({**arrays, "blocks.1.norm2.bias": np.zeros(5, np.float32)}, file)
    with pytest.raises(UserError, match=r"blocks\.1\.norm2\.bias \(5,\)"):
        load(str(file))


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_becomes_float32(dtype, tmp_path: Path):
    file, arrays = folder(tmp_path)
    save_file({name: x.astype(dtype) for name, x in arrays.items()}, file)
    got = load(str(file.parent))
    assert {x.dtype.name for x in got.params.values()} == {"float32"}
    assert np.array_equal(got.params["norm/bias"], arrays["norm.bias"].astype(dtype).astype(np.float32))


def test_big_visions_bfloat16(tmp_path: Path):
    write(pretrained(), "npz", tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        half = {name: x.astype(ml_dtypes.bfloat16) for name, x in file.items()}
    np.savez(tmp_path / "b.npz", **half)
    got = load(str(tmp_path / "b.npz")).params["norm/bias"]
    assert np.array_equal(got, half["Transformer/encoder_norm/bias"].astype(np.float32))


def test_shards_are_put_together(tmp_path: Path):
    file, arrays = folder(tmp_path)
    whole, names = load(str(file.parent)), sorted(arrays)
    file.unlink()
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for part, inside in parts.items():
        save_file({name: arrays[name] for name in inside}, file.with_name(part))
    index = {"metadata": {}, "weight_map": {name: part for part, inside in parts.items() for name in inside}}
    file.with_name("model.safetensors.index.json").write_text(json.dumps(index))
    same(whole, load(str(file.parent)))


def test_pickles_are_refused_unopened(tmp_path: Path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "opened"),)

    import pickle

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    for text in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(UserError, match="pickled") as error:
            load(str(text))
        assert "torch.load('pytorch_model.bin', 'cpu', weights_only=True)" in error.value.fix
    np.savez(tmp_path / "odd.npz", np.array([Bomb()], dtype=object))
    with pytest.raises(UserError, match="allow_pickle=False"):
        load(str(tmp_path / "odd.npz"))
    assert not (tmp_path / "opened").exists()


def test_heads_that_nothing_tells(tmp_path: Path):
    file, arrays = folder(tmp_path)
    save_file(arrays, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="how many heads share a width of 24") as error:
        load(str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text('{"architecture": "vit_tiny_patch16_224", "model_args": {"num_heads": 2}}')
    same(load(str(file)), load(str(tmp_path / "model.safetensors")))
    assert "num_heads" in error.value.fix


def test_the_hub_is_asked_for_a_name_and_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr("vit.weights.source.fetch", lambda text: asked.append(text) or tmp_path / "w")
    folder(tmp_path)
    assert load("timm:vit_tiny_patch16_224").config.width == 24
    assert asked == ["timm:vit_tiny_patch16_224"]
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="huggingface_hub") as error:
        load("hf:google/vit-base-patch16-224")
    assert "--extra hub" in error.value.fix


def test_without_a_network_what_was_downloaded_whole_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    httpx = pytest.importorskip("huggingface_hub.utils").httpx

    def unreachable(*_, **__):
        raise httpx.ConnectError("no route")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    snapshot = tmp_path / "models--timm--vit_small" / "snapshots" / "0123"
    file, _ = folder(tmp_path)
    for parent in (snapshot.parent, snapshot.parents[1] / "refs"):
        parent.mkdir(parents=True)
    file.parent.rename(snapshot)
    (snapshot.parents[1] / "refs" / "main").write_text("0123")
    assert load("timm:vit_small").config.width == 24
    # One shard of two: the download was cut off.
    (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match="never downloaded"):
        load("timm:vit_small")
