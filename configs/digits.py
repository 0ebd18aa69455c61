"""scikit-learn's digits, the default: 1,293 grey images of 8x8 to train on, 144 to validate, 360 to test.

    uv run train.py --seed 0

A ViT of 0.1 M parameters (2x2 patches, 16 tokens) with affine augmentation. Expected: 98.5 to 99.5 % on the 360 test
images; results by seed are in the README. Cost: 4,500 steps, 60 to 90 seconds on two cores.
How it was chosen, without the test images: docs/decisions/0004-digits.md.
"""

from vit.config import AdamW, AugmentConfig, ClassificationConfig, Config, ScheduleConfig, ViTConfig


def get_config() -> Config:
    """A plain ViT with 2x2 patches and affine augmentation."""
    return Config(
        steps=4500,
        batch_size=64,
        ema=0.99,
        eval_every=500,
        save_every=500,
        log_every=50,
        augment=AugmentConfig(rotate=12, zoom=0.1, shear=0.15, shift=0.08),
        task=ClassificationConfig(label_smoothing=0.1),
        model=ViTConfig(patch=2, width=64, depth=2, heads=4, mlp=256, pool="mean"),
        optim=AdamW(lr=4e-3, weight_decay=0.3),
        schedule=ScheduleConfig(warmup=100),
    )
