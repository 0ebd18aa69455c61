"""Boxes around composed digits: 6,000 scenes to train on, 500 of other digits to test.

uv run train.py --config configs/detect_digits.py
"""

from vit.config import AugmentConfig, Config, DenseHead, DetectionConfig, Muon, ScenesData, ScheduleConfig, ViTConfig


def get_config() -> Config:
    """As configs/segment_digits.py: small batches, so that there are many updates, and Muon, so that each is worth more."""
    return Config(
        steps=2600,
        batch_size=8,
        clip=0.0,
        eval_every=650,
        save_every=650,
        log_every=50,
        data=ScenesData(truth="boxes"),
        augment=AugmentConfig(),
        task=DetectionConfig(head=DenseHead(width=48, strides=(8,), convs=1)),
        model=ViTConfig(patch=8, width=64, depth=3, heads=4, mlp=128, stem="conv", pool="mean"),
        optim=Muon(lr=5e-3, weight_decay=0.1),
        schedule=ScheduleConfig(warmup=100, decay="linear"),
    )
