"""CIFAR-10 in 30 minutes on two CPU cores, from scratch: a ViT of 0.9 M parameters.

    uv run vit prepare cifar10 --data.dir DIR
    uv run train.py --config configs/cifar10_cpu.py --data.dir DIR

Six blocks of width 128 on 8x8 tokens from two strided convolutions (8 % of the FLOPs). Muon makes each update worth more,
and the images are 16x16, then 24x24 pixels for most of the run, so that a step costs a quarter or a half. The result on the
10,000 test images, with the seconds and that machine's matmul speed, is in the README; how it was chosen, on 5,000 training
images held out: docs/decisions/0005-cifar10.md.
"""

from vit.config import AugmentConfig, ClassificationConfig, Config, Muon, ScheduleConfig, TfdsData, ViTConfig


def get_config() -> Config:
    """Few tokens, Muon, progressive resolution, the learning rate falling to zero."""
    return Config(
        steps=2900,
        batch_size=128,
        eval_every=725,
        save_every=725,
        log_every=25,
        data=TfdsData(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
        augment=AugmentConfig(crop=4, flip=True),
        task=ClassificationConfig(label_smoothing=0.1),
        model=ViTConfig(patch=4, width=128, depth=6, heads=4, mlp=256, stem="conv", pool="mean"),
        optim=Muon(lr=4e-3, weight_decay=0.1),
        schedule=ScheduleConfig(warmup=145, decay="linear", sizes=(16, 24), until=(0.4, 0.7)),
        clip=0.0,
    )
