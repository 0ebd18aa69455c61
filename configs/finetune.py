"""Your own images, from pretrained weights: class folders, a table or a prepared set in DIR.

    uv run train.py --config configs/finetune.py --data.dir DIR --weights runs/cifar10_cpu-s0
    uv run train.py --config configs/finetune.py --data.dir DIR --weights WEIGHTS --lora.rank 8

The weights decide the model, its image size and how pixels are normalised; what else suits them and the number of images is
chosen and printed with the reason (vit/training/defaults.py), and any flag overrules. Without --weights a small ViT is
trained from scratch on 64x64 pixels. Cost: 100 epochs on fewer than 2,560 images. Measured: docs/decisions/0010-finetuning.md.
"""

from vit.config import AdamW, AugmentConfig, Config, FolderData, ViTConfig
from vit.training.defaults import ORDER


def get_config() -> Config:
    """Everything that can be chosen is, at a batch of 64."""
    return Config(
        batch_size=64,
        data=FolderData(size=64),
        augment=AugmentConfig(flip=True),
        model=ViTConfig(patch=8, width=128, depth=6, heads=4, mlp=256, stem="conv", pool="mean"),
        optim=AdamW(weight_decay=0.05),
        auto=("data.size", *ORDER),
    )
