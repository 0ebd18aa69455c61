"""ImageNet-1k from scratch, S/16 after "Better plain ViT baselines for ImageNet-1k" (arXiv 2205.01580), 90 epochs.

    uv run --extra tf vit prepare imagenet2012 --data.dir DIR
    uv run train.py --config configs/imagenet.py --data.dir DIR

The first needs TensorFlow, and the two archives of ILSVRC2012 in DIR/downloads/manual. Published: 76.5 % on the 50,000
validation images. It's a target, not a result: this has been run for two steps on made-up images. 1 % of the training
images is held out for validation; the official validation images are the test.
"""

from vit.config import AdamW, AugmentConfig, Config, ScheduleConfig, TfdsData, ViTConfig

EPOCH = 0.99 * 1_281_167 / 1024  # steps


def get_config() -> Config:
    """Batch 1024, AdamW, RandAugment(2, 10), mixup 0.2, mean pooling, sin-cos positions."""
    return Config(
        steps=round(90 * EPOCH),
        batch_size=1024,
        eval_every=round(5 * EPOCH),
        save_every=round(EPOCH),
        log_every=50,
        clip=1.0,
        data=TfdsData("imagenet2012", train="train[:99%]", val="train[99%:]", test="validation", size=224, stream=True),
        augment=AugmentConfig(flip=True, randaugment=2, magnitude=10, mixup=0.2),
        model=ViTConfig.variant("S/16", position="sincos", pool="mean", dtype="bfloat16"),
        # The paper's decay of 1e-4 a step doesn't count the learning rate in; here it is a factor of the learning rate.
        optim=AdamW(lr=1e-3, weight_decay=1e-4 / 1e-3),
        schedule=ScheduleConfig(warmup=10_000),
    )
