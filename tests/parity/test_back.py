"""What `vit convert` writes, loaded strictly by timm and transformers: the same predictions as before."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
import transformers as hf
from safetensors import safe_open
from safetensors.torch import load_file

from tests.parity.families import Case, cases, hf_run, of_timm, randomised, timm_run
from tests.parity.test_parity import graph, relative
from vit import cli
from vit.models.vit import merge
from vit.weights import load

TIMM, HF = ([case for case in cases() if case.name.startswith(kind)] for kind in ("timm", "transformers"))


def from_timm(folder: Path) -> Any:
    told = json.loads((folder / "config.json").read_text())
    model = timm.create_model(told["architecture"], **told["model_args"])
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    return model.eval()


def from_hf(folder: Path) -> Any:
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    with safe_open(folder / "model.safetensors", "np") as file:
        pooler = any(name.startswith("pooler.") for name in file.keys())  # noqa: SIM118 - not a dict
    options = {} if kind != "ViTModel" or pooler else {"add_pooling_layer": False}  # as `vit convert` says
    model, said = getattr(hf, kind).from_pretrained(folder, output_loading_info=True, **options)
    assert not any(said[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), said
    return model.eval()


def images(size: tuple[int, int], channels: int = 3) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((2, *size, channels), np.float32)


def ours(w: Any, x: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(lambda p, x: merge(graph(w), p)(x)[0])(w.params, jnp.asarray(x)))


def torched(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(x).permute(0, 3, 1, 2)


@pytest.mark.parametrize("case", TIMM, ids=lambda case: case.name)
def test_timm_to_timm(case: Case, tmp_path: Path):
    model = randomised(case.build())
    case.save(model, tmp_path / "in")
    cli.run(["convert", str(tmp_path / "in"), "--to", "timm", str(tmp_path / "out")])
    twin = from_timm(tmp_path / "out")
    with torch.no_grad():
        x = torched(images(case.native))
        for a, b in zip(timm_run(twin, x), timm_run(model, x), strict=True):
            assert relative(a, b) < 1e-5
    assert load(str(tmp_path / "out")).config == load(str(tmp_path / "in")).config


@pytest.mark.parametrize("case", HF, ids=lambda case: case.name)
def test_transformers_to_transformers(case: Case, tmp_path: Path):
    if "CLIPForImageClassification" in case.name:
        pytest.skip("its head reads tokens that no other CLIP's does: it loads, and converts to timm alone")
    model = randomised(case.build())
    case.save(model, tmp_path / "in")
    cli.run(["convert", str(tmp_path / "in"), "--to=hf", str(tmp_path / "out")])
    twin = from_hf(tmp_path / "out")
    with torch.no_grad():
        x = torched(images(case.native))
        _, a = hf_run(twin, x)
        _, b = hf_run(model, x)
        if "Siglip2" in case.name:  # written as the SigLIP of one size that it is
            a = twin(x).pooler_output
        assert relative(a, b) < 1e-5


@pytest.mark.parametrize(
    ("layout", "args"),
    [
        ("hf", {"name": "deit3_small_patch16_224"}),
        ("hf", {"name": "vit_small_patch14_reg4_dinov2"}),
        ("hf", {"name": "vit_base_patch16_gap_224", "embed_dim": 96, "num_heads": 3}),
        ("hf", {"name": "vit_base_patch32_clip_quickgelu_224", "num_classes": 0}),
        ("hf", {"name": "vit_base_patch16_siglip_224", "num_classes": 0}),
        ("npz", {"name": "vit_tiny_patch16_224"}),
        ("npz", {"name": "vit_base_patch16_siglip_224", "embed_dim": 96, "num_heads": 3}),
        ("npz", {"name": "vit_base_patch16_gap_224", "embed_dim": 96, "num_heads": 3}),
    ],
    ids=lambda x: x if isinstance(x, str) else x["name"],
)
def test_from_one_library_to_another(layout: str, args: dict[str, Any], tmp_path: Path):
    case = of_timm("", **args)
    model = randomised(case.build())
    case.save(model, tmp_path / "in")
    out = tmp_path / ("out.npz" if layout == "npz" else "out")
    cli.run(["convert", str(tmp_path / "in"), "--to", layout, str(out)])
    x = torched(images(case.native))
    with torch.no_grad():
        wanted = timm_run(model, x)[1]
        if layout == "npz":
            twin = randomised(case.build(), seed=9)
            twin.load_pretrained(str(out))  # timm's own reader of Google's names
            got = timm_run(twin, x)[1]
        else:
            got = hf_run(from_hf(out), x)[1]
    assert relative(got, wanted) < 1e-5
    if layout == "npz":
        assert relative(ours(load(str(out)), images(case.native)), wanted) < 1e-4


@pytest.mark.parametrize("layout", ["timm", "hf", "npz"])
def test_a_run_of_ours(trained: Path, layout: str, tmp_path: Path):
    out = tmp_path / ("out.npz" if layout == "npz" else "out")
    cli.run(["convert", str(trained), "--to", layout, str(out)])
    w = load(str(trained))
    x = images(w.image_size, w.channels)
    wanted = ours(w, x)
    with torch.no_grad():
        if layout == "timm":
            got = from_timm(out)(torched(x))
        elif layout == "hf":
            got = from_hf(out)(torched(x)).logits
        else:
            args = json.loads((timm_folder(trained, tmp_path) / "config.json").read_text())
            model = timm.create_model(args["architecture"], **args["model_args"]).eval()
            model.load_pretrained(str(out))
            got = model(torched(x))
    assert relative(got, wanted) < 1e-4
    assert np.abs(wanted).max() > 0
    again = load(str(out))
    assert (again.mean, again.std, again.class_names) == (w.mean, w.std, w.class_names) or layout == "npz"
    assert relative(ours(again, x), wanted) < 1e-6


def timm_folder(run: Path, folder: Path) -> Path:
    cli.run(["convert", str(run), "--to", "timm", str(folder / "timm")])
    return folder / "timm"
