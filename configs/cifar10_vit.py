"""CIFAR-10 on a GPU or TPU with a plain ViT: 4x4 patches, no convolution anywhere, 100 epochs.

    uv run vit prepare cifar10 --data.dir DIR
    uv run train.py --config configs/cifar10_vit.py --data.dir DIR

Nine blocks of width 192, 4.0 M parameters. Target: about 93.6 % on the 10,000 test images (published for a plain ViT of
this size at 100 epochs: 93.58 %). It's a target, not a result: this has not been run to its end.
"""

from vit.config import AdamW, AugmentConfig, ClassificationConfig, Config, ScheduleConfig, TfdsData, ViTConfig

EPOCH = 45_000 / 128  # steps


def get_config() -> Config:
    """A plain ViT with the augmentation of configs/cifar10.py."""
    return Config(
        steps=round(100 * EPOCH),
        batch_size=128,
        eval_every=round(5 * EPOCH),
        save_every=round(5 * EPOCH),
        log_every=50,
        data=TfdsData(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
        augment=AugmentConfig(crop=4, flip=True, randaugment=1, magnitude=9, erase=0.25, mixup=0.8, cutmix=1.0),
        task=ClassificationConfig(label_smoothing=0.1),
        model=ViTConfig(patch=4, width=192, depth=9, heads=3, mlp=768, pool="mean", dtype="bfloat16"),
        optim=AdamW(lr=1e-3, weight_decay=0.05),
        schedule=ScheduleConfig(warmup=round(10 * EPOCH)),
    )
