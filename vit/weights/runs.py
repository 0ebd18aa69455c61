"""The source of weights that we write ourselves: the folder of a run of train.py."""

from typing import Any

from vit.training.evaluate import open_run
from vit.weights.pretrained import Pretrained


def is_run(folder: Any) -> bool:
    """Whether a folder is one that train.py made."""
    return (folder / "checkpoints").is_dir()


def load_run(folder: Any) -> Pretrained:
    """The model of the newest good checkpoint, as `eval.py` takes it: the moving average where there is one, LoRA merged.

    Raises `UserError` if there is no good checkpoint.
    """
    run = open_run(folder, "last")
    data, pixels = run.meta["data"], run.meta["preprocessing"]
    (height, width), window = data["image_size"], getattr(run.config.task, "window", 0)
    notes = [f"its blocks attended in windows of {window} x {window} tokens"] if window else []
    return Pretrained(
        params=run.params,
        config=run.config.model,
        image_size=(height, width),
        channels=data["channels"],
        classes=len(data["class_names"]),
        class_names=data["class_names"],
        mean=tuple(pixels["mean"]),
        std=tuple(pixels["std"]),
        source=f"{folder}, step {run.step}",
        notes=[*run.warnings, *notes],
        head=getattr(run.config.task, "head", None),
    )
