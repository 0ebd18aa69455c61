"""What EoMT's evaluation counts, of outputs made by hand."""

import numpy as np
import pytest

from vit.config import EomtHead, SegmentationConfig, ViTConfig
from vit.tasks import make_task

DATA = {"dataset": "mine", "class_names": ["ground", "cat"], "image_size": [8, 8], "channels": 3, "view": "whole"}
MODEL = ViTConfig(patch=4, width=8, depth=1, heads=2, mlp=16)


def figures(output):
    """One cat found, and another where there is only ground."""
    head = EomtHead(queries=2, blocks=1, output=output)
    task = make_task(SegmentationConfig(head=head), MODEL, {**DATA, "things": [False, True]})
    label, segments = np.zeros((1, 8, 8), np.uint8), np.full((1, 8, 8), -1, np.int16)
    label[0, :4, :4] = 1
    segments[0, :4, :4], segments[0, 6:, 6:] = 0, 1
    masks = np.stack([segments[0] == q for q in range(2)])[None]
    predicted = {
        "ids": label,
        "segments": segments,
        "kinds": np.ones((1, 2), np.int32),
        "object_masks": np.packbits(masks, axis=-1),
        "object_kinds": np.ones((1, 2), np.int32),
        "object_scores": np.array([[0.9, 0.8]], np.float32),
    }
    size = np.array([[8, 8]], np.int32)
    batch = {"label": label, "instance": label.astype(np.uint16), "size": size, "id": np.zeros(1, np.int32)}
    return task.summary(task.metrics(predicted, batch), task.kept(predicted, batch))


@pytest.mark.parametrize("output", ["panoptic", "instance"])
def test_an_object_on_the_ground_is_one_too_many(output):
    found = figures(output)
    assert found["pq_per_class"]["cat"] == pytest.approx(1 / 1.5)  # one hit, one too many
    assert found["pq_per_class"]["ground"] == (0.0 if output == "panoptic" else None)  # which no segment claims
    assert found["pq"] == pytest.approx(1 / 3 if output == "panoptic" else 2 / 3)
    assert found["ap50"] == pytest.approx(1.0)  # the surer one is right
