"""What a run optimises: a model, a loss and figures, one file a task."""

from typing import Any

from vit.config import ClassificationConfig, EomtHead, SegmentationConfig, ViTConfig
from vit.errors import UserError
from vit.tasks.classification import Classification
from vit.tasks.mask_segmentation import MaskSegmentation
from vit.tasks.segmentation import Segmentation

Task = Classification | Segmentation | MaskSegmentation


def make_task(config: ClassificationConfig | SegmentationConfig, model: ViTConfig, data: dict[str, Any]) -> Task:
    """The task that a configuration describes; `data` is what `vit.data.sources.describe` says.

    Raises `UserError` if the data hasn't got what the task learns.
    """
    if isinstance(config, SegmentationConfig):
        if "view" not in data:
            fix = "give a config with masks, as configs/segment.py, or one for classification, as configs/finetune.py"
            raise UserError("segmentation needs masks, the data has labels", data["dataset"], fix)
        return (MaskSegmentation if isinstance(config.head, EomtHead) else Segmentation)(config, model, data)
    if "view" in data:
        fix = "give a config for segmentation, as configs/segment.py, or data with a label an image"
        raise UserError("classification needs labels, the data has masks", data["dataset"], fix)
    return Classification(config, model, data)
