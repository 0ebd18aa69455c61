"""What a run optimises: a model, a loss and figures, one file a task."""

from typing import Any

from vit.config import ClassificationConfig, ViTConfig
from vit.tasks.classification import Classification


def make_task(config: ClassificationConfig, model: ViTConfig, data: dict[str, Any]) -> Classification:
    """The task that a configuration describes; `data` is what `vit.data.sources.describe` says."""
    return {ClassificationConfig: Classification}[type(config)](config, model, data)
