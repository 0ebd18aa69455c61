"""The boxes of configs/detect_digits.py found by queries: a DETR decoder (arXiv 2005.12872) with noisy boxes and groups.

uv run train.py --config configs/detect_digits_detr.py
"""

from vit.config import AugmentConfig, Config, DetectionConfig, DetrHead, Muon, ScenesData, ScheduleConfig, ViTConfig


def get_config() -> Config:
    """Twenty queries in three groups, three layers, two noisy copies of each box (docs/decisions/0017)."""
    return Config(
        steps=2600,
        batch_size=8,
        clip=1.0,
        eval_every=650,
        save_every=650,
        log_every=50,
        data=ScenesData(truth="boxes"),
        augment=AugmentConfig(),
        task=DetectionConfig(head=DetrHead(queries=20, layers=3, groups=3, denoising=2)),
        model=ViTConfig(patch=8, width=64, depth=3, heads=4, mlp=128, stem="conv", pool="mean"),
        optim=Muon(lr=3e-3, weight_decay=0.1),
        schedule=ScheduleConfig(warmup=100, decay="linear"),
    )
