"""CIFAR-10 in about three hours (estimated) on two CPU cores: configs/cifar10_cpu.py with a larger model, more steps.

    uv run vit prepare cifar10 --data.dir DIR
    uv run train.py --config configs/cifar10_3h.py --data.dir DIR

Target: 90 % on the 10,000 test images. It's a target, not a result: the README says whether this was run.
"""

from vit.config import AugmentConfig, ClassificationConfig, Config, Muon, ScheduleConfig, TfdsData, ViTConfig


def get_config() -> Config:
    """Width 192, mild RandAugment and CutMix."""
    return Config(
        steps=10_500,
        batch_size=128,
        eval_every=2_100,
        save_every=1_050,
        log_every=50,
        data=TfdsData(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
        augment=AugmentConfig(crop=4, flip=True, randaugment=1, magnitude=5, cutmix=1.0),
        task=ClassificationConfig(label_smoothing=0.1),
        model=ViTConfig(patch=4, width=192, depth=6, heads=6, mlp=384, stem="conv", pool="mean"),
        optim=Muon(lr=4e-3, weight_decay=0.1),
        schedule=ScheduleConfig(warmup=500, decay="linear", sizes=(16, 24), until=(0.4, 0.7)),
        clip=0.0,
    )
