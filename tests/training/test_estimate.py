"""What is said of a run before it runs: memory as XLA plans it, traffic by hand-made programs, batches, the command."""

import contextlib
import dataclasses
import io
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.conftest import REPO, SMALL, run
from tests.data.mask_faults import config as mask_config
from tests.data.mask_faults import whole, write
from vit import cli
from vit.config import Config, SegmentationConfig, TfdsData, ViTConfig
from vit.data.batches import Batches
from vit.data.masks import MaskImages
from vit.errors import UserError
from vit.tasks import make_task
from vit.training import estimate
from vit.training.sharding import make_mesh, state_shardings
from vit.training.state import state_shapes

CONFIG = Config(batch_size=16, model=ViTConfig(patch=4, width=64, depth=2, heads=4, mlp=256), data=TfdsData(dir="nowhere"))


def step(mesh, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    data, example, assumed = estimate.described(config)
    assert assumed == "10 classes at 32x32: the data isn't here"
    return estimate.compiled(config, make_task(config.task, config.model, data), example, mesh)


def test_copies_send_their_gradients_and_fsdp_holds_an_eighth():
    mesh = make_mesh(jax.devices())
    data, _, _ = estimate.described(CONFIG)
    state = state_shapes(make_task(CONFIG.task, CONFIG.model, data), CONFIG)
    gradient = 4 * sum(x.size for x in state["params"].values())
    copies, cut = step(mesh), step(mesh, fsdp=True)
    # An all-reduce in a ring sends each number twice but for an eighth.
    assert copies.sent == pytest.approx(2 * 7 / 8 * gradient, rel=0.02)
    assert copies.state == pytest.approx(3 * gradient, rel=0.01)
    assert cut.state < 1.2 * copies.state / 8
    assert cut.memory < copies.memory


@pytest.mark.parametrize(("fsdp", "tensor"), [(True, 1), (True, 2)])
def test_what_a_device_holds_shrinks_with_their_number(fsdp, tensor):
    """Of S/16, whose step isn't compiled for it."""
    config = Config(model=ViTConfig.variant("S/16"), fsdp=fsdp, tensor=tensor)
    data = {"dataset": "x", "class_names": list(map(str, range(1000))), "image_size": [224, 224], "channels": 3}
    shapes = state_shapes(make_task(config.task, config.model, data), config)
    whole = sum(x.size for x in jax.tree.leaves(shapes))
    for n in (2, 4, 8):
        if n == tensor:
            continue
        like = jax.tree.leaves(state_shardings(shapes, make_mesh(jax.devices()[:n], tensor), fsdp))
        assert sum(math.prod(x.sharding.shard_shape(x.shape)) for x in like) < 1.1 * whole / n


def test_traffic_of_collectives():
    program = """HloModule x
%inner (p: f32[4]) -> f32[4] {
  %a = f32[1024]{0} all-gather(%p), replica_groups=[1,8]<=[8], dimensions={0}
}
%all-reduce-scatter.3 (p: f32[16]) -> f32[4] {
  %a = f32[16]{0} all-reduce(%p), replica_groups=[1,4]<=[4], to_apply=%add
}
%kept (p: f32[4]) -> f32[4] {
  %a = f32[4]{0} copy(%p)
}
%changed.1 (p: f32[4]) -> f32[4] {
  %a = f32[512]{0} all-gather(%p), replica_groups=[1,8]<=[8], dimensions={0}
}
ENTRY %main (p: f32[4]) -> f32[4] {
  %b = (bf16[100]{0}, f32[10]{0}) all-reduce(%x, %y), replica_groups={{0,1},{2,3}}, to_apply=%add
  %c = f32[8]{0} reduce-scatter(%x), replica_groups=[2,4]<=[8], to_apply=%add
  %e = f32[10]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  %g = (f32[10]{0}, f32[10]{0:T(8,128)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), source_target_pairs={{0,1}}
  %h = f32[4]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3
  %f = f32[10]{0} all-reduce(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add
  %i = (f32[4]) conditional(%n, %x, %y), branch_computations={%kept, %changed.1}
  %j = (f32[4]) conditional(%n, %x, %y), true_computation=%changed.1, false_computation=%kept
  %d = f32[4] while(%z), condition=%cond, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
}
"""
    here = (200 + 40) * 2 / 2 + 32 * 3 + 40 + 40 + 40 * 2 * 3 / 4
    assert (
        estimate.sent(program) == here + 64 * 3 / 4 + 2 * 2048 * 7 / 8 + 3 * 4096 * 7 / 8
    )  # within a fusion, branches, a loop


@pytest.mark.parametrize(
    ("room", "batch", "found"), [(1000, 16, 88), (400, 16, 24), (104, 64, 0), (200, 64, 8), (100, 64, 0), (1e9, 8, 99999984)]
)
def test_the_largest_batch_is_one_that_was_compiled(room, batch, found):
    asked = []

    def memory(size):
        asked.append(size)
        return 104.0 + 10 * size if size < 10**9 else math.inf

    most = estimate.largest_batch(memory, batch, 8, room)
    assert most == found
    assert most in asked or not most
    assert len(asked) <= 8


def told(*args):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        cli.run(["estimate", *map(str, args)])
    return out.getvalue()


def test_the_command(monkeypatch):
    flags = ["--model.width=16", "--model.depth=1", "--model.heads=2", "--model.mlp=32", "--batch-size=16"]
    text = told("--config", REPO / "configs/digits.py", *flags)
    for start in (
        "model: ",
        "devices: 8 × cpu",
        "memory: ",
        "largest batch that fits: ",
        "collectives: ",
        "at 50% MFU: ",
        "disk: ",
    ):
        assert any(line.startswith(start) for line in text.splitlines()), text
    with pytest.raises(UserError, match="needs a configuration"):
        told("--topology", "v5e:2x2")
    monkeypatch.setattr(estimate.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs libtpu"):
        told("--config", REPO / "configs/digits.py", "--topology=v5e:2x2")


def test_a_set_with_masks_must_be_there():
    with pytest.raises(UserError):
        told("--config", REPO / "configs/segment.py", "--data.dir", Path("nowhere"))


@pytest.mark.parametrize("view", ["whole", "sliding"])
def test_what_is_compiled_has_the_shapes_of_training(view, tmp_path):
    """Of masks, whose evaluation is at the images' own size."""
    data = mask_config(write(tmp_path, whole()), view=view)
    _, example, _ = estimate.described(Config(data=data, task=SegmentationConfig()))
    batch = next(Batches(MaskImages(data, "train"), 0, 2).starting_at(0))
    assert {n: x.shape for n, x in example.items()} == {n: x.shape[1:] for n, x in batch.items() if n != "mask"}


def test_a_dry_run_tells_and_leaves_nothing(tmp_path):
    out, _ = run("train.py", *SMALL, "--dry-run", f"--workdir={tmp_path / 'run'}")
    assert "devices: 1 × cpu" in out
    assert "largest batch that fits: " in out
    assert "disk: " in out
    assert not (tmp_path / "run").exists()


def test_known_sizes_of_data_that_is_not_here():
    data, example, _ = estimate.described(dataclasses.replace(CONFIG, data=TfdsData("imagenet2012", dir="nowhere", size=224)))
    assert (len(data["class_names"]), data["image_size"]) == (1000, [224, 224])
    assert example["image"].shape == (224, 224, 3)
    assert np.asarray(example["label"]).dtype == np.int32
