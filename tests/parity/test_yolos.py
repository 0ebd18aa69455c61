"""YOLOS beside transformers': boxes and classes, the loss and its matching, what is found."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from tests.parity.families import randomised
from tests.parity.test_parity import relative
from vit.config import YolosHead
from vit.errors import UserError
from vit.models.vit import merge
from vit.models.yolos import Yolos
from vit.tasks import queries
from vit.weights import Pretrained, load

MIDDLE = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96, "image_size": (64, 96),
    "patch_size": 16, "num_detection_tokens": 7, "num_labels": 5, "use_mid_position_embeddings": True,
}  # fmt: skip
PLAIN = {
    **MIDDLE, "hidden_size": 32, "num_attention_heads": 4, "image_size": (32, 32), "patch_size": 8, "num_detection_tokens": 4,
    "num_labels": 2, "use_mid_position_embeddings": False, "qkv_bias": False, "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-5,
}  # fmt: skip
OBLONG = {**PLAIN, "image_size": (36, 53)}  # whole patches alone count, as in YOLOS-Ti of 800 x 1333
SIZES = {"middle": [(64, 96), (48, 128)], "plain": [(32, 32), (56, 24)], "oblong": [(32, 48), (56, 24)]}


def theirs(settings: dict[str, Any]) -> Any:
    """A model with random weights, so large in the last layers that every token says something else."""
    model = randomised(transformers.YolosForObjectDetection(transformers.YolosConfig(**settings)))
    with torch.no_grad():
        for last in (model.bbox_predictor, model.class_labels_classifier):
            for x in last.parameters():
                x *= 3 if x.ndim > 1 else 1
    return model


def ours(w: Pretrained) -> Any:
    """The same model."""
    shape = {"image_size": w.image_size, "channels": w.channels, "classes": w.classes}
    graph = nnx.graphdef(nnx.eval_shape(lambda: Yolos(w.config, w.head, **shape, rngs=nnx.Rngs(0))))
    return merge(graph, {path: jnp.asarray(x) for path, x in w.params.items()})


def as_ours(boxes: Any) -> np.ndarray:
    """Their (centre x, centre y, width, height) as corners (y, x)."""
    x, y, w, h = np.moveaxis(np.asarray(boxes.detach()), -1, 0)
    return np.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], axis=-1)


@pytest.mark.parametrize("name", SIZES)
def test_classes_and_boxes_agree(name: str, tmp_path: Path):
    model = theirs({"middle": MIDDLE, "plain": PLAIN, "oblong": OBLONG}[name])
    model.save_pretrained(tmp_path)
    w = load(str(tmp_path))
    for size in SIZES[name]:
        images = np.random.default_rng(0).standard_normal((2, *size, w.channels), np.float32)
        with torch.no_grad():
            wanted = model(torch.tensor(images).permute(0, 3, 1, 2))
        result, out = jax.jit(ours(w))(images)
        tokens = np.concatenate([out["tokens"], out["queries"]], axis=1)
        errors = [
            relative(tokens, wanted.last_hidden_state),
            relative(result["classes"], wanted.logits),
            float(np.abs(result["boxes"] - as_ours(wanted.pred_boxes)).max()),
        ]
        print(f"{name} {size} tokens {errors[0]:.1e} classes {errors[1]:.1e} boxes {errors[2]:.1e}")
        assert max(errors) <= 1e-4
        assert np.ptp(np.asarray(result["boxes"]), axis=1).max() > 1e-2  # the tokens don't all say the same


def test_names_of_models_in_memory(tmp_path: Path):
    model = theirs(MIDDLE)
    model.save_pretrained(tmp_path)
    wanted = load(str(tmp_path)).params
    save_file({name: x.numpy() for name, x in model.state_dict().items()}, tmp_path / "model.safetensors")
    got = load(str(tmp_path)).params
    assert got.keys() == wanted.keys()
    assert all(np.array_equal(got[path], wanted[path]) for path in wanted)


def test_a_key_left_over_on_either_side_is_an_error(tmp_path: Path):
    theirs(MIDDLE).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    arrays, middle = load_file(file), "vit.encoder.mid_position_embeddings"
    save_file({**arrays, "bbox_predictor.layers.3.bias": arrays["bbox_predictor.layers.0.bias"]}, file)
    with pytest.raises(UserError, match=r"nothing here takes bbox_predictor\.layers\.3\.bias"):
        load(str(tmp_path))
    save_file({name: x for name, x in arrays.items() if name != middle}, file)
    with pytest.raises(UserError, match=r"the file lacks vit\.encoder\.mid_position_embeddings"):
        load(str(tmp_path))
    save_file({**arrays, middle: arrays[middle][1:]}, file)
    with pytest.raises(
        UserError, match=r"another shape than the model's vit\.encoder\.mid_position_embeddings \(1, 1, 32, 48\)"
    ):
        load(str(tmp_path))


def test_what_config_json_tells(tmp_path: Path):
    told = {"class_cost": 3, "bbox_loss_coefficient": 4, "giou_loss_coefficient": 6, "eos_coefficient": 0.2}
    theirs({**MIDDLE, **told, "id2label": {i: f"kind {i}" for i in range(5)}}).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1] * 3, "image_std": [0.2] * 3}))
    w = load(str(tmp_path))
    losses = {"class_weight": 3, "box_weight": 4, "giou_weight": 6, "no_object": 0.2}
    assert w.head == YolosHead(queries=7, middle=True, **losses)
    assert (w.image_size, w.classes, w.class_names) == ((64, 96), 5, [f"kind {i}" for i in range(5)])
    assert (w.mean, w.std, w.notes) == ((0.1,) * 3, (0.2,) * 3, [])


# ---- what the model is trained with ----

HEAD = YolosHead(queries=9)


@pytest.mark.parametrize("count", [0, 1, 4, 7])
def test_the_loss_is_transformers(count: int):
    rng = np.random.default_rng(count)
    logits, raw = rng.standard_normal((1, 9, 4), np.float32), rng.uniform(0.1, 0.9, (1, 9, 4)).astype(np.float32)
    boxes, label = rng.uniform(0.1, 0.9, (count, 4)).astype(np.float32), rng.integers(0, 3, count)
    labels = [{"class_labels": torch.tensor(label), "boxes": torch.tensor(boxes)}]
    config = transformers.YolosConfig(num_labels=3)
    wanted, parts, _ = ForObjectDetectionLoss(torch.tensor(logits), labels, "cpu", torch.tensor(raw), config)

    batch = {"boxes": np.zeros((1, 7, 4), np.float32), "label": np.full((1, 7), -1), "crowd": np.zeros((1, 7), bool)}
    batch["boxes"][0, :count], batch["label"][0, :count] = as_ours(torch.tensor(boxes)), label
    batch = jax.tree.map(jnp.asarray, batch)
    mine = {"boxes": jnp.asarray(as_ours(torch.tensor(raw))), "classes": jnp.asarray(logits)}
    targets = queries.targets(batch, HEAD.queries)
    got = jax.jit(lambda: (queries.loss([mine], targets, HEAD), queries.losses([mine], targets, HEAD)))()
    assert float(got[0][0]) == pytest.approx(float(wanted), rel=1e-5)
    for name, theirs_ in (("classes", "ce"), ("boxes", "bbox"), ("giou", "giou")):
        assert float(got[1][name][0, 0]) == pytest.approx(float(parts[f"loss_{theirs_}"]), rel=1e-5, abs=1e-7)


def test_what_is_found_is_transformers():
    rng = np.random.default_rng(0)
    logits, raw = 2 * rng.standard_normal((2, 9, 4), np.float32), rng.uniform(0.3, 0.6, (2, 9, 4)).astype(np.float32)
    outputs: Any = SimpleNamespace(logits=torch.tensor(logits), pred_boxes=torch.tensor(raw))
    there = transformers.YolosImageProcessor().post_process_object_detection(outputs, threshold=0.0)
    here = queries.query_outputs({"boxes": jnp.asarray(as_ours(torch.tensor(raw))), "classes": jnp.asarray(logits)}, HEAD, 12)
    for i, found in enumerate(there):
        order = np.argsort(-found["scores"].numpy())
        np.testing.assert_allclose(here["scores"][i], [*found["scores"].numpy()[order], 0, 0, 0], rtol=1e-5)
        np.testing.assert_array_equal(here["kinds"][i, :9], found["labels"].numpy()[order])
        boxes = found["boxes"].numpy()[order][:, [1, 0, 3, 2]]
        np.testing.assert_allclose(here["boxes"][i, :9], np.clip(boxes, 0, 1), atol=1e-6)
