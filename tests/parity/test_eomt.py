"""EoMT beside transformers': masks and classes, masked attention, the loss and its matching, what becomes of masks."""

import dataclasses
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
from transformers.models.eomt import modeling_eomt

from tests.parity.families import randomised
from tests.parity.test_parity import relative
from vit.config import EomtHead
from vit.errors import UserError
from vit.models.eomt import Eomt
from vit.models.matching import match
from vit.models.vit import merge
from vit.tasks import masks
from vit.weights import Pretrained, load

SQUARE = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 64, "patch_size": 16, "num_blocks": 2,
    "num_queries": 7, "num_labels": 5, "num_register_tokens": 4,
}  # fmt: skip
OTHER = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 48, "patch_size": 8, "num_blocks": 3,
    "num_queries": 11, "num_labels": 3, "num_register_tokens": 0, "num_upscale_blocks": 1, "use_swiglu_ffn": True,
    "layer_norm_eps": 1e-5, "mlp_ratio": 3, "layerscale_value": 0.5,
}  # fmt: skip


def theirs(settings: dict[str, Any], masked: float) -> Any:
    """A model with random weights, whose attention is masked everywhere or nowhere."""
    model = randomised(transformers.EomtForUniversalSegmentation(transformers.EomtConfig(**settings)))
    model.attn_mask_probs.fill_(masked)
    return model


def ours(w: Pretrained) -> Any:
    """The same model."""
    shape = {"image_size": w.image_size, "channels": w.channels, "classes": w.classes}
    graph = nnx.graphdef(nnx.eval_shape(lambda: Eomt(w.config, w.head, **shape, rngs=nnx.Rngs(0))))
    return merge(graph, {path: jnp.asarray(x) for path, x in w.params.items()})


def images_for(model: Any, seed: int = 0) -> np.ndarray:
    side, channels = model.config.image_size, model.config.num_channels
    return np.random.default_rng(seed).standard_normal((2, side, side, channels), np.float32)


@pytest.mark.parametrize("masked", [0.0, 1.0])
@pytest.mark.parametrize("settings", [SQUARE, OTHER], ids=["square", "swiglu"])
def test_masks_and_classes_agree(settings: dict[str, Any], masked: float, tmp_path: Path):
    model = theirs(settings, masked)
    model.save_pretrained(tmp_path)
    w = load(str(tmp_path))
    images = images_for(model)
    seen = {}  # what predictions there were before the last one
    hook = model.class_predictor.register_forward_hook(lambda _, __, x: seen.setdefault("classes", []).append(x))
    with torch.no_grad():
        wanted = model(torch.tensor(images).permute(0, 3, 1, 2))
    hook.remove()
    result, out = jax.jit(lambda x, share: ours(w)(x, anneal=share if masked else 0.0))(images, jnp.full(w.head.blocks, masked))
    errors = relative(result["masks"], wanted.masks_queries_logits), relative(result["classes"], wanted.class_queries_logits)
    print(f"{masked=} masks {errors[0]:.1e} classes {errors[1]:.1e}")
    assert max(errors) <= 1e-4
    assert len(out["layers"]) == len(seen["classes"]) - 1 == (w.head.blocks if masked else 0)
    for layer, classes in zip(out["layers"], seen["classes"], strict=False):
        assert relative(layer["classes"], classes) <= 1e-4
    assert any("masked attention" in note and "anneal" in note for note in w.notes) == bool(masked)
    assert w.class_names == [f"LABEL_{i}" for i in range(settings["num_labels"])]


def test_a_key_left_over_on_either_side_is_an_error(tmp_path: Path):
    theirs(SQUARE, 0.0).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    arrays = load_file(file)
    save_file({**arrays, "mask_head.fc4.bias": arrays["mask_head.fc3.bias"]}, file)
    with pytest.raises(UserError, match=r"nothing here takes mask_head\.fc4\.bias"):
        load(str(tmp_path))
    save_file({name: x for name, x in arrays.items() if name != "query.weight"}, file)
    with pytest.raises(UserError, match=r"the file lacks query\.weight"):
        load(str(tmp_path))
    save_file({**arrays, "query.weight": arrays["query.weight"][1:]}, file)
    with pytest.raises(UserError, match=r"another shape than the model's query\.weight \(6, 48\)"):
        load(str(tmp_path))


def test_gate_and_value_in_one_matrix(tmp_path: Path):
    theirs(OTHER, 0.0).save_pretrained(tmp_path)
    wanted, file = load(str(tmp_path)).params, tmp_path / "model.safetensors"
    arrays = load_file(file)
    for i in range(OTHER["num_hidden_layers"]):
        for part in ("weight", "bias"):
            both = [arrays.pop(f"layers.{i}.mlp.{name}_proj.{part}") for name in ("gate", "up")]
            arrays[f"layers.{i}.mlp.weights_in.{part}"] = np.concatenate(both)
            arrays[f"layers.{i}.mlp.weights_out.{part}"] = arrays.pop(f"layers.{i}.mlp.down_proj.{part}")
    save_file(arrays, file)
    got = load(str(tmp_path)).params
    assert got.keys() == wanted.keys()
    assert all(np.array_equal(got[path], wanted[path]) for path in wanted)


def test_what_config_json_tells_of_the_head(tmp_path: Path):
    losses = {"class_weight": 1.5, "mask_weight": 3.0, "dice_weight": 4.0, "no_object_weight": 0.2, "train_num_points": 99}
    theirs({**SQUARE, **losses}, 0.0).save_pretrained(tmp_path)
    head = {"queries": 7, "blocks": 2, "upscale": 2, "points": 99, "class_weight": 1.5, "mask_weight": 3.0}
    assert load(str(tmp_path)).head == EomtHead(**head, dice_weight=4.0, no_object=0.2)


# ---- what the model is trained with ----

HEAD = EomtHead(queries=9, points=200, output="panoptic")


def scene(seed: int) -> tuple[dict[str, np.ndarray], dict[str, jax.Array]]:
    """An image's label and objects, and a prediction of it, at random."""
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(0, 4, (3, 3)), np.ones((8, 8))).astype(np.uint8)
    instance = np.where(label >= 2, 1 + np.arange(24)[:, None] // 8 * 3 + np.arange(24)[None] // 8, 0).astype(np.uint16)
    masks, classes = rng.standard_normal((9, 12, 12), np.float32), rng.standard_normal((9, 5), np.float32)
    return {"label": label, "instance": instance}, {"masks": jnp.asarray(3 * masks), "classes": jnp.asarray(classes)}


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_transformers_at_the_same_points(seed: int, monkeypatch: pytest.MonkeyPatch):
    batch, prediction = scene(seed)
    wanted = masks.targets({name: jnp.asarray(x)[None] for name, x in batch.items()}, HEAD, 4)
    alone, count = jax.tree.map(lambda x: x[0], wanted), int(wanted.valid.sum())
    key = jax.random.key(seed)
    got = masks.losses(jax.tree.map(lambda x: x[None], prediction), [], wanted, HEAD, key[None])
    assert 3 < count < 10

    # What was drawn here is drawn there too. Their masks are in the order of queries, their points are (x, y).
    for_costs, for_losses = jax.random.split(jax.random.fold_in(key, masks.APART), 2)
    cost = masks.costs(prediction, alone, masks.uniform(for_costs, HEAD.points), HEAD)
    query = np.asarray(match(cost[None], alone.valid[None]))[0, :count]
    first, second, room = *jax.random.split(for_losses), len(alone.valid)
    many, few = 3 * HEAD.points, HEAD.points - int(0.75 * HEAD.points)
    drawn = [masks.uniform(for_costs, HEAD.points)[None]]
    drawn += [jax.random.uniform(k, (room, n, 2))[np.argsort(query)] for k, n in ((first, many), (second, few))]
    drawn = [torch.tensor(np.array(x[..., ::-1])) for x in drawn]
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: drawn.pop(0).reshape(shape))
    costs, solve = [], modeling_eomt.linear_sum_assignment
    monkeypatch.setattr(modeling_eomt, "linear_sum_assignment", lambda x: costs.append(x.numpy()) or solve(x))
    settings = transformers.EomtConfig(num_queries=9, num_labels=4, train_num_points=HEAD.points)
    criterion = modeling_eomt.EomtLoss(settings, {})
    criterion.empty_weight[-1] = HEAD.no_object
    there = torch.tensor(np.stack([np.asarray(alone.places) == m for m in range(count)]), dtype=torch.float32)
    logits = {name: torch.tensor(np.array(x))[None] for name, x in prediction.items()}
    told = criterion(
        logits["masks"], logits["classes"], [there], [torch.tensor(np.array(alone.classes[:count]), dtype=torch.long)]
    )

    assert not drawn
    assert relative(cost[:, :count], costs[0]) <= 1e-5
    for name, theirs_ in (("classes", "cross_entropy"), ("masks", "mask"), ("dice", "dice")):
        assert float(got[name][0, 0]) == pytest.approx(float(told[f"loss_{theirs_}"]), rel=1e-5)


# ---- what becomes of masks ----


def sure(seed: int) -> dict[str, np.ndarray]:
    """Blobs that overlap, most of them sure of their class."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16] / 16
    centres = rng.random((20, 2, 1, 1))
    far = np.hypot(y - centres[:, 0], x - centres[:, 1])
    blobs = (60 * (rng.uniform(0.1, 0.2, (20, 1, 1)) - far)).astype(np.float32)
    return {"masks": blobs, "classes": (8 * rng.standard_normal((20, 5))).astype(np.float32)}


@pytest.mark.parametrize("stuff", [[], [1, 2]])
@pytest.mark.parametrize("seed", range(4))
def test_segments_are_those_of_transformers(seed: int, stuff: list[int]):
    prediction, size = sure(seed), (32, 32)
    outputs = SimpleNamespace(
        masks_queries_logits=torch.tensor(prediction["masks"])[None],
        class_queries_logits=torch.tensor(prediction["classes"])[None],
        patch_offsets=None,
    )
    edges: Any = {"size": {"shortest_edge": 32, "longest_edge": 32}, "target_sizes": [size]}
    whole = {
        **jax.tree.map(jnp.asarray, prediction),
        "masks": jax.image.resize(prediction["masks"], (20, *size), "linear", antialias=False),
    }
    processor, head = transformers.EomtImageProcessor(), dataclasses.replace(HEAD, threshold=0.6)
    there = processor.post_process_panoptic_segmentation(outputs, **edges, stuff_classes=stuff, threshold=0.6)[0]
    here = masks.panoptic(whole, head, stuff)
    compare(here, there)
    there = processor.post_process_instance_segmentation(outputs, **edges, threshold=0.6)[0]
    compare(masks.instances(whole, head), there)
    there = processor.post_process_semantic_segmentation(outputs, **edges, return_segmentation_scores=True)[0]
    scores = masks.semantic(jax.tree.map(lambda x: jnp.asarray(x)[None], whole))[0]
    assert relative(scores.transpose(2, 0, 1), there.segmentation_scores) <= 1e-5


def compare(here: dict[str, jax.Array], there: dict[str, Any]) -> None:
    """The same segments with the same classes and scores; ours are numbered by their queries."""
    kept = np.flatnonzero(here["kept"])
    assert len(kept) == len(there["segments_info"]) > 1
    assert [int(here["classes"][q]) for q in kept] == [x["label_id"] for x in there["segments_info"]]
    np.testing.assert_allclose(here["scores"][kept], [x["score"] for x in there["segments_info"]], atol=2e-6)
    numbers = np.append(kept, -1)  # theirs are in order, and -1 is the last
    np.testing.assert_array_equal(here["segments"], numbers[np.asarray(there["segmentation"]).astype(int)])
