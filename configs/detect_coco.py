"""COCO on an accelerator, from DINOv3's ViT-B/16 (arXiv 2508.10104) with a simple feature pyramid (ViTDet, arXiv 2203.16527).

    uv run --extra hub train.py --config configs/detect_coco.py --data.dir DIR

DIR has annotations/instances_train2017.json and instances_val2017.json beside train2017 and val2017. Published box AP:
YOLOS-S 36.1, DETR-R50 42.0, ViTDet-B 51.6, RF-DETR-M 54.7. Target, not measured: 48 on val2017, below ViTDet-B, which sees
1024x1024 for 100 epochs. Cost: 90,000 steps of 64 images of 640x640, 49 epochs; not run.
"""

from vit.config import AdamW, AugmentConfig, BoxData, Config, DenseHead, DetectionConfig, ScheduleConfig, ViTConfig


def get_config() -> Config:
    """Large-scale jitter from a tenth to twice the size (arXiv 2012.07177), layer-wise learning rates, a moving average."""
    return Config(
        steps=90_000,
        batch_size=64,
        ema=0.9998,
        eval_every=9000,
        save_every=3000,
        log_every=100,
        weights="timm:vit_base_patch16_dinov3.lvd1689m",
        data=BoxData(size=(640, 640), scale=(0.1, 2.0), visible=0.1),
        augment=AugmentConfig(flip=True, colour=0.2),
        task=DetectionConfig(head=DenseHead(width=256, convs=3)),
        model=ViTConfig.variant("B/16", pool="token", drop_path=0.1, dtype="bfloat16"),
        optim=AdamW(lr=2e-4, weight_decay=0.1, layer_decay=0.8),
        schedule=ScheduleConfig(warmup=1000),
    )
