"""CamVid's 11 classes in 20 minutes on two CPU cores, from scratch: 367 street scenes to train on, 101 to choose, 233 to test.

    uv run train.py --config configs/segment_camvid_cpu.py --data.dir DIR

DIR holds train, val and test with trainannot, valannot and testannot, as SegNet's authors split it. A ViT of 1.0 M parameters
sees 192x256 pixels, resized, and crops of up to 1.5 times that scale; figures are of the 480x360 pixels of the masks. Mean IoU
37.77 %, pixel accuracy 78.73 % on test, in 1,900 steps of 0.6 s: docs/decisions/0015-segmentation.md.
"""

from vit.config import AugmentConfig, Config, ConvHead, MaskData, Muon, ScheduleConfig, SegmentationConfig, ViTConfig

NAMES = ("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist", "void")


def get_config() -> Config:
    """Six blocks on 12x16 tokens of a convolutional stem, rotary positions, Muon, a head down to every fourth pixel."""
    return Config(
        steps=1900,
        batch_size=8,
        clip=0.0,
        eval_every=950,
        save_every=950,
        log_every=25,
        data=MaskData(
            size=(192, 256), scale=(1.0, 1.5), names=NAMES, void=(11, 255), stream=False,
            mean=(0.41, 0.42, 0.43), std=(0.30, 0.31, 0.31),
        ),
        augment=AugmentConfig(flip=True, colour=0.5),
        task=SegmentationConfig(head=ConvHead(width=48, levels=2, stride=4)),
        model=ViTConfig(patch=16, width=128, depth=6, heads=2, mlp=256, stem="conv", pool="mean", rope="dinov3"),
        optim=Muon(lr=4e-3, weight_decay=0.1),
        schedule=ScheduleConfig(warmup=95),
    )  # fmt: skip
