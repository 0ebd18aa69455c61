"""What a run optimises: a model, a loss and figures, one file a task."""

from typing import Any

from vit.config import ClassificationConfig, DetectionConfig, EomtHead, SegmentationConfig, ViTConfig
from vit.errors import UserError
from vit.tasks.classification import Classification
from vit.tasks.detection import Detection
from vit.tasks.mask_segmentation import MaskSegmentation
from vit.tasks.segmentation import Segmentation

Task = Classification | Segmentation | MaskSegmentation | Detection
ASKS = {
    ClassificationConfig: ("classification", "labels", "configs/finetune.py"),
    SegmentationConfig: ("segmentation", "masks", "configs/segment.py"),
    DetectionConfig: ("detection", "boxes", "configs/detect.py"),
}


def make_task(
    config: ClassificationConfig | SegmentationConfig | DetectionConfig, model: ViTConfig, data: dict[str, Any]
) -> Task:
    """The task that a configuration describes; `data` is what `vit.data.sources.describe` says.

    Raises `UserError` if the data hasn't got what the task learns.
    """
    name, wanted, _ = ASKS[type(config)]
    has = "boxes" if data.get("boxes") else "masks" if "view" in data else "labels"
    if wanted != has:
        suited = next(file for _, what, file in ASKS.values() if what == has)
        raise UserError(f"{name} needs {wanted}, the data has {has}", data["dataset"], f"give a config for {has}, as {suited}")
    if isinstance(config, DetectionConfig):
        return Detection(config, model, data)
    if isinstance(config, SegmentationConfig):
        return (MaskSegmentation if isinstance(config.head, EomtHead) else Segmentation)(config, model, data)
    return Classification(config, model, data)
