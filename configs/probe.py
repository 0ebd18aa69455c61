"""A linear probe: the backbone stays as it is, a head is trained on its features (as in DINOv2, arXiv 2304.07193).

    uv run train.py --config configs/probe.py --data.dir DIR --weights runs/cifar10_cpu-s0

No weight decay, no augmentation but random crops and flips. The score tells what the features know.
"""

from vit.config import AdamW, AugmentConfig, Config, FolderData
from vit.training.defaults import HEAD_ALONE

CHOSEN = ("steps", "eval_every", "save_every", "log_every", "schedule.warmup", "optim.lr")


def get_config() -> Config:
    """The head alone, by AdamW without weight decay."""
    return Config(
        batch_size=64,
        data=FolderData(size=64),
        augment=AugmentConfig(flip=True),
        optim=AdamW(weight_decay=0.0),
        freeze=HEAD_ALONE,
        auto=("data.size", *CHOSEN),
    )
