"""What may be wrong with pretrained weights: the cases of tests/test_errors.py on them."""

import json
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.weights.test_convert import FAMILIES, pretrained
from vit import cli
from vit.weights import load
from vit.weights.convert import write


def timm(fault: Callable[[dict[str, Any]], Any] | None = None, config: dict[str, Any] | None = None, **changes: Any) -> Any:
    """Load a file of timm's names after a change to its arrays."""

    def provoke(at: Any) -> None:
        write(pretrained(**changes), "timm", at.folder / "w.safetensors")
        arrays = load_file(at.folder / "w.safetensors")
        arrays = (fault(arrays) if fault else None) or arrays
        save_file(arrays, at.folder / "w.safetensors")
        (at.folder / "config.json").write_text(json.dumps({"model_args": {"num_heads": 2, **(config or {})}}))
        load(str(at.folder / "w.safetensors"))

    return provoke


def hf(fault: Callable[[dict[str, Any]], Any], **changes: Any) -> Any:
    """Load a folder of transformers after a change to its config.json."""

    def provoke(at: Any) -> None:
        write(pretrained(**{"classes": 0, **changes}), "hf", at.folder / "w")
        told = json.loads((at.folder / "w" / "config.json").read_text())
        fault(told)
        (at.folder / "w" / "config.json").write_text(json.dumps(told))
        load(str(at.folder / "w"))

    return provoke


def yolos(fault: Callable[[dict[str, Any]], Any]) -> Any:
    """Load a folder of YOLOS that has hardly more than a config.json, after a change to it."""

    def provoke(at: Any) -> None:
        told: dict[str, Any] = {"model_type": "yolos", "hidden_size": 24, "num_attention_heads": 2, "num_detection_tokens": 3}
        fault(told)
        save_file({"vit.embeddings.cls_token": np.zeros((1, 1, 24), np.float32)}, at.folder / "model.safetensors")
        (at.folder / "config.json").write_text(json.dumps(told))
        load(str(at.folder))

    return provoke


def npz(fault: Callable[[dict[str, Any]], Any]) -> Any:
    def provoke(at: Any) -> None:
        write(pretrained(), "npz", at.folder / "a.npz")
        with np.load(at.folder / "a.npz", allow_pickle=False) as file:
            arrays = dict(file)
        fault(arrays)
        np.savez(at.folder / "b.npz", **arrays)
        load(str(at.folder / "b.npz"))

    return provoke


def out(layout: str, name: str = "out", **changes: Any) -> Any:
    return lambda at: write(pretrained(**changes), layout, at.folder / name)


def at_file(name: str, text: str = "") -> Any:
    return lambda at: load(str(at.file(name, text)))


def shards(weight_map: Any, *files: str) -> Any:
    def provoke(at: Any) -> None:
        for file in files:
            save_file({"a": np.zeros(1)}, at.folder / file)
        load(str(at.file("model.safetensors.index.json", json.dumps({"weight_map": weight_map}))))

    return provoke


def noted(at: Any) -> None:
    save_file({"a": np.zeros(1)}, at.folder / "a.safetensors", metadata={"vit": '{"layout": "moon"}'})
    load(str(at.folder / "a.safetensors"))


def hub(raised: str = "", text: str = "timm:vit_tiny_patch16_224") -> Any:
    """Ask the hub, which answers with an error of that name."""

    def provoke(at: Any) -> None:
        if not raised:
            at.patch.setitem(sys.modules, "huggingface_hub", None)
        else:
            from huggingface_hub import errors
            from huggingface_hub.utils import httpx

            def fail(*_: Any, **__: Any) -> None:
                if raised == "ConnectError":
                    raise httpx.ConnectError("no route")
                response = httpx.Response(404, request=httpx.Request("GET", "https://hub"))
                raise getattr(errors, raised)("no", response=response)

            at.patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(at.folder))
            at.patch.setattr("huggingface_hub.HfApi.model_info", fail)
        load(text)

    return provoke


def without(pattern: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda arrays: {name: x for name, x in arrays.items() if not re.search(pattern, name)}


def existing(at: Any) -> None:
    (at.folder / "out").mkdir()
    cli.run(["convert", str(at.folder), "--to", "timm", str(at.folder / "out")])


def store(at: Any) -> None:
    at.patch.setattr("vit.training.storage.open_folder", lambda text: at.folder)
    load("gs://bucket/run")


def headless(at: Any) -> None:
    write(pretrained(), "timm", at.folder / "w.safetensors")
    save_file(load_file(at.folder / "w.safetensors"), at.folder / "w.safetensors")
    load(str(at.folder / "w.safetensors"))


CASES: dict[str, Callable[[Any], Any]] = {
    "weights that aren't there": lambda at: load(str(at.folder / "none.safetensors")),
    "weights in an empty folder": lambda at: load(str(at.folder)),
    "weights of another ending": at_file("weights.onnx"),
    "weights that are pickled": at_file("model.pth"),
    "weights that are damaged": at_file("a.safetensors", "not this"),
    "weights of one part of several": at_file("model-00001-of-00002.safetensors"),
    "shards of which one is missing": shards({"a": "a.safetensors", "b": "b.safetensors"}, "a.safetensors"),
    "weights without positions": timm(without("pos_embed")),
    "weights without a last normalisation": timm(without("^norm")),
    "weights that config.json contradicts": timm(config={"depth": 5}),
    "weights of EVA-02-E": timm(config={"use_post_norm": True}),
    "weights beside nonsense": timm(config={"num_heads": "x"}),
    "weights of one mean and three deviations": timm(config={"mean": [0.5], "std": [0.5, 0.5, 0.5]}),
    "transformers' weights of an odd image size": hf(lambda told: told.update(image_size="32")),
    "transformers' weights without their classifier": hf(lambda told: told.update(architectures=["ViTForImageClassification"])),
    "shards elsewhere": shards({"a": "../a.safetensors"}),
    "shards that lack an array": shards({"a": "a.safetensors", "b": "a.safetensors"}, "a.safetensors"),
    "weights of unknown names": lambda at: (save_file({"a": np.zeros(1)}, at.folder / "a.safetensors"), load(str(at.folder))),
    "weights with a note that can't be read": noted,
    "weights with keys left over": timm(lambda arrays: {**without("0.norm2")(arrays), "extra": np.zeros(2, np.float32)}),
    "weights without a head dimension": headless,
    "weights of an unknown activation": timm(config={"act_layer": "mish"}),
    "weights of oblong patches": timm(lambda a: {**a, "patch_embed.proj.weight": np.zeros((24, 3, 4, 2), np.float32)}),
    "weights of an oblong image": timm(lambda a: {**a, "pos_embed": np.zeros((1, 14, 24), np.float32)}),
    "transformers' weights without config.json": hf(lambda told: told.clear()),
    "transformers' weights of another kind": hf(lambda told: told.update(model_type="swin")),
    "transformers' weights of another activation": hf(lambda told: told.update(hidden_act="relu")),
    "a DINOv3 of other frequencies": hf(
        lambda told: told.update(rope_theta=10.0), **{**FAMILIES["dinov3"], "pool": "token", "class_token": False}
    ),
    "YOLOS of another activation": yolos(lambda told: told.update(hidden_act="relu6")),
    "YOLOS of oblong patches": yolos(lambda told: told.update(patch_size=[16, 8])),
    "Google's weights of flat patches": npz(lambda a: a.update({"embedding/kernel": np.zeros((48, 24), np.float32)})),
    "Google's weights of no plain ViT": npz(lambda a: a.pop("Transformer/posembed_input/pos_embedding")),
    "Google's weights of an oblong image": npz(
        lambda a: a.update({"Transformer/posembed_input/pos_embedding": np.zeros((1, 14, 24), np.float32)})
    ),
    "hub without its package": hub(),
    "hub without an answer": hub("ConnectError"),
    "hub without the repository": hub("RepositoryNotFoundError"),
    "hub with a licence": hub("GatedRepoError"),
    "hub with an impossible name": hub("ConnectError", "hf:a/b/c"),
    "store without a run": store,
    "convert without a place": lambda at: cli.run(["convert", "runs/x", "--to", "timm"]),
    "convert to another layout": lambda at: cli.run(["convert", "runs/x", "--to", "onnx", str(at.folder / "out")]),
    "convert onto something": existing,
    "convert a convolutional stem": out("timm", stem="conv"),
    "convert what timm has not": out("timm", pre_logits=8),
    "convert to a nameless npz": out("npz"),
    "convert oblong images to transformers": out("hf", pool="mean", image_size=(16, 24)),
    "convert a head that transformers has not": out("hf", pool="map"),
    "convert a head behind a tanh layer": out("hf", pre_logits=24),
    "convert a DINOv3 without registers": out("hf", classes=0, position="none", rope="dinov3", qkv_bias="qv"),
    "convert a DINOv2 of another MLP": out("hf", layer_scale=0.5, activation="swiglu", mlp=42),
}
