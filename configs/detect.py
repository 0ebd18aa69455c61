"""Your own images with boxes, from pretrained weights or from scratch: COCO's JSON, Pascal VOC's XML, YOLO's TXT in DIR.

    uv run train.py --config configs/detect.py --data.dir DIR --weights timm:vit_small_patch14_reg4_dinov2.lvd142m
    uv run train.py --config configs/detect.py --data.annotations FILE.json

The forms that are found, and what is done with crowds, difficult and bad boxes: docs/decisions/0016-boxes.md. The weights
decide the model's sizes; the patch must divide --data.size, and strides be the patch times or through powers of two (518 518
--task.head.strides 7 14 28 for patches of 14). How long and how fast follows from the number of images and is printed with the
reason. Without --weights a small ViT is trained from scratch. Look at the data first: uv run vit check DIR.
"""

from vit.config import AdamW, AugmentConfig, BoxData, Config, DenseHead, DetectionConfig, ViTConfig
from vit.training.defaults import ORDER

FITTING = [
    name for name in ORDER if name not in ("augment.randaugment", "augment.mixup", "augment.cutmix", "task.label_smoothing")
]


def get_config() -> Config:
    """Images of 384x384, padded, at a batch of 8, a dense head."""
    return Config(
        batch_size=8,
        data=BoxData(size=(384, 384), scale=(0.6, 1.6), mosaic=0.2),
        augment=AugmentConfig(flip=True, colour=0.3),
        task=DetectionConfig(head=DenseHead(width=96)),
        model=ViTConfig(patch=16, width=192, depth=8, heads=6, mlp=384, stem="conv", pool="mean"),
        optim=AdamW(weight_decay=0.05),
        auto=tuple(FITTING),
    )
