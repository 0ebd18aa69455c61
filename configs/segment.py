"""Your own images with masks, from pretrained weights or from scratch: folders, lists, COCO or a prepared set in DIR.

    uv run train.py --config configs/segment.py --data.dir DIR --weights timm:vit_small_patch14_reg4_dinov2.lvd142m
    uv run train.py --config configs/segment.py --data.dir DIR --data.view sliding     # large images, at their own scale

The forms that are found, and what is done with ids, colours and void: docs/decisions/0013-masks.md. The weights decide the
model's sizes; the patch must divide --data.size (252 252 --task.head.stride 7 for patches of 14). How long and how fast
follows from the number of images and is printed with the reason. Without --weights a small ViT is trained from scratch. Look at
the data first: uv run vit check DIR.
"""

from vit.config import AdamW, AugmentConfig, Config, ConvHead, MaskData, SegmentationConfig, ViTConfig
from vit.training.defaults import ORDER

FITTING = [
    name for name in ORDER if name not in ("augment.randaugment", "augment.mixup", "augment.cutmix", "task.label_smoothing")
]


def get_config() -> Config:
    """Crops of 256x256 at a batch of 16, a convolutional head."""
    return Config(
        batch_size=16,
        data=MaskData(size=(256, 256)),
        augment=AugmentConfig(flip=True, colour=0.3),
        task=SegmentationConfig(head=ConvHead(width=64, levels=4, stride=4)),
        model=ViTConfig(patch=16, width=192, depth=8, heads=6, mlp=384, stem="conv", pool="mean"),
        optim=AdamW(weight_decay=0.05),
        auto=tuple(FITTING),
    )
