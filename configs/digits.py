"""scikit-learn's digits, the default: 1,293 images of 8x8 to train on."""

from vit.config import AdamW, AugmentConfig, Config, DigitsData, ScheduleConfig, ViTConfig


def get_config() -> Config:
    """A plain ViT with 2x2 patches and affine augmentation."""
    return Config(
        steps=2000,
        batch_size=128,
        eval_every=200,
        save_every=200,
        data=DigitsData(),
        augment=AugmentConfig(rotate=15, zoom=0.15, shear=0.15, shift=0.1),
        model=ViTConfig(patch=2, width=48, depth=4, heads=4, mlp=192, pool="mean"),
        optim=AdamW(lr=2e-3, weight_decay=0.05),
        schedule=ScheduleConfig(warmup=100),
        ema=0.99,
    )
