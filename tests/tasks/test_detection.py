"""The detection task: what its batches, outputs and figures are; boxes that move with their pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit.config import (
    NOBODY,
    AugmentConfig,
    ClassificationConfig,
    Config,
    DenseHead,
    DetectionConfig,
    ScenesData,
    SegmentationConfig,
    ViTConfig,
)
from vit.data.augment import make_prepare
from vit.data.batches import once
from vit.data.scenes import Scenes
from vit.data.sources import describe
from vit.errors import UserError
from vit.tasks import make_task
from vit.tasks.detection import own_pixels
from vit.training.state import example_keys, init_state, make_eval_step, make_train_step

TINY = ViTConfig(patch=16, width=16, depth=1, heads=2, mlp=32, pool="mean")
CONFIG = Config(
    steps=4,
    batch_size=4,
    data=ScenesData(scenes=8, truth="boxes"),
    task=DetectionConfig(head=DenseHead(width=8, strides=(16,), convs=0), found=20),
    model=TINY,
)


def test_scenes_with_boxes():
    source, masks = Scenes(CONFIG.data, "train"), Scenes(ScenesData(scenes=8), "train")
    assert source.class_names == [str(k) for k in range(10)]
    for i in range(len(source)):
        example, scene = source[i], masks[i]
        np.testing.assert_array_equal(example["image"], scene["image"])
        real = example["label"] != NOBODY
        assert 1 <= real.sum() <= 6
        assert not real[real.argmin() :].any() or real.all()  # rows in use come first
        for n in np.flatnonzero(real):
            y, x = np.nonzero(scene["instance"] == n + 1)
            y0, x0, y1, x1 = example["boxes"][n] * 96
            assert (y.min() >= y0 - 1e-3) & (x.min() >= x0 - 1e-3) & (y.max() < y1) & (x.max() < x1)
            assert set(scene["label"][scene["instance"] == n + 1]) == {example["label"][n] + 1}
            np.testing.assert_allclose(example["area"][n], (y1 - y0) * (x1 - x0), rtol=1e-5)
        last = real.sum() - 1  # nothing covers it: its box is that of its ink
        y, x = np.nonzero(scene["instance"] == last + 1)
        np.testing.assert_allclose(example["boxes"][last] * 96, [y.min(), x.min(), y.max() + 1, x.max() + 1], rtol=1e-5)


def test_boxes_move_with_a_flip():
    image = np.zeros((16, 32, 48, 3), np.uint8)
    image[:, 4:20, 30:41] = 255
    boxes = np.tile(np.float32([[4 / 32, 30 / 48, 20 / 32, 41 / 48]]), (16, 1, 1))
    prepare = make_prepare(CONFIG.data, AugmentConfig(flip=True, colour=0.2))
    ids = jnp.arange(16)
    batch = {"image": jnp.asarray(image), "boxes": jnp.asarray(boxes), "label": jnp.zeros((16, 1), int), "id": ids}
    seen = jax.jit(prepare)(batch, example_keys(0, jnp.zeros((), int), ids))
    light, sides = np.asarray(seen["image"]).mean(axis=-1) > 0, set()
    for i in range(16):
        y, x = np.nonzero(light[i])
        np.testing.assert_allclose(
            seen["boxes"][i, 0], [y.min() / 32, x.min() / 48, (y.max() + 1) / 32, (x.max() + 1) / 48], atol=1e-6
        )
        sides.add(int(x.min()))
    assert sides == {30, 7}


def test_own_pixels():
    """An image of 300x200 (height, width), shown as 96x64 in the upper left of 96x128."""
    shown = own_pixels(np.float32([[0.5, 0.25, 1.0, 0.5], [0, 0, 1.2, 0.9]]), (300, 200), (96, 64), (96, 128))
    np.testing.assert_allclose(shown, [[150, 100, 300, 200], [0, 0, 300, 200]])


def test_a_step_and_an_evaluation_that_counts_every_box():
    sources = {split: Scenes(CONFIG.data, split) for split in ("train", "val")}
    task = make_task(CONFIG.task, CONFIG.model, describe(sources["train"]))
    prepare = make_prepare(CONFIG.data, CONFIG.augment)
    state = init_state(task.build, CONFIG)
    batch = next(once(sources["train"], 4))
    state, metrics = make_train_step(task, prepare, CONFIG)(state, {name: jnp.asarray(x) for name, x in batch.items()})
    assert np.isfinite(metrics["loss"])
    outputs = jax.tree.map(np.asarray, make_eval_step(task, prepare)(state["params"], batch))
    assert {name: x.shape for name, x in outputs.items()} == {"boxes": (4, 20, 4), "scores": (4, 20), "kinds": (4, 20)}
    assert (np.diff(outputs["scores"], axis=1) <= 0).all()
    kept = task.kept(outputs, batch)
    for i in range(4):
        real = batch["label"][i] != NOBODY
        np.testing.assert_allclose(kept["truth"][i]["boxes"], batch["boxes"][i][real] * 96, rtol=1e-6)
    perfect = [{**t, "scores": np.ones(len(t["kinds"]))} for t in kept["truth"]]
    kept["found"][:] = perfect
    figures = task.summary(task.metrics(outputs, batch), kept)
    assert (figures["ap"], figures["ap50"], figures["examples"]) == (1, 1, 4)
    assert task.score(figures) == (1, 1, figures["threshold"])


@pytest.mark.parametrize(
    ("config", "data", "message"),
    [
        (DetectionConfig(), {"view": "whole"}, "detection needs boxes, the data has masks"),
        (DetectionConfig(), {}, "detection needs boxes, the data has labels"),
        (SegmentationConfig(), {"view": "whole", "boxes": True}, "segmentation needs masks, the data has boxes"),
        (ClassificationConfig(), {"view": "whole", "boxes": True}, "classification needs labels, the data has boxes"),
    ],
)
def test_data_of_another_task(config, data, message):
    with pytest.raises(UserError, match=message):
        make_task(config, TINY, {"dataset": "made up", "class_names": ["a"], "image_size": [32, 32], "channels": 3, **data})
