"""CamVid on an accelerator, from DINOv3's ViT-S/16 (arXiv 2508.10104) or DINOv2's ViT-S/14 (arXiv 2304.07193).

    uv run --extra hub train.py --config configs/segment_camvid.py --data.dir DIR
    uv run --extra hub train.py --config configs/segment_camvid.py --data.dir DIR \
        --weights timm:vit_small_patch14_dinov2.lvd142m --data.size 350 476 --task.head.stride 7

DIR as for configs/segment_camvid_cpu.py. Target on the 233 test images, not measured: mean IoU 0.70, pixel accuracy 0.92
(networks with ImageNet's weights publish 0.65 to 0.78 at 480x360; the two papers don't report CamVid). Cost: 4,000 steps of 16
crops of 352x480 pixels; not run to its end.
"""

from vit.config import AdamW, AugmentConfig, Config, ConvHead, MaskData, ScheduleConfig, SegmentationConfig, ViTConfig

NAMES = ("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist", "void")


def get_config() -> Config:
    """Everything is trained, the lower layers slower; the weights decide the backbone."""
    return Config(
        steps=4000,
        batch_size=16,
        ema=0.999,
        eval_every=500,
        save_every=500,
        log_every=50,
        weights="timm:vit_small_patch16_dinov3.lvd1689m",
        data=MaskData(size=(352, 480), scale=(0.75, 2.0), names=NAMES, void=(11, 255)),
        augment=AugmentConfig(flip=True, colour=0.4),
        task=SegmentationConfig(head=ConvHead(width=128, levels=4, stride=4)),
        model=ViTConfig.variant("S/16", pool="token", drop_path=0.1, dtype="bfloat16"),
        optim=AdamW(lr=3e-4, weight_decay=0.05, layer_decay=0.8),
        schedule=ScheduleConfig(warmup=200),
    )
