"""Every digit of a scene as an object of its own: EoMT (arXiv 2503.19108) with panoptic output on composed digit scenes.

    uv run train.py --config configs/segment_digits_eomt.py

A small backbone with 20 queries that join its last two blocks; figures are panoptic quality, mask AP and mean IoU. Cost:
8,000 steps of 8 scenes, about three hours on two cores by estimate; its first steps alone were run. With COCO annotations of
your own: data=MaskData(dir=…, view="padded"); the head of --weights hf:tue-mps/coco_panoptic_eomt_large_640 is kept where
classes, queries and blocks are the same.
"""

from vit.config import AugmentConfig, Config, EomtHead, Muon, ScenesData, ScheduleConfig, SegmentationConfig, ViTConfig


def get_config() -> Config:
    """20 queries, two joined blocks, masks at every second pixel."""
    return Config(
        steps=8000,
        batch_size=8,
        clip=0.1,
        ema=0.999,
        eval_every=1000,
        save_every=1000,
        log_every=50,
        data=ScenesData(scenes=8000),
        augment=AugmentConfig(),
        task=SegmentationConfig(head=EomtHead(queries=20, blocks=2, upscale=2, output="panoptic", points=2304)),
        model=ViTConfig(patch=8, width=96, depth=5, heads=4, mlp=192, stem="conv", pool="mean"),
        optim=Muon(lr=2e-3, weight_decay=0.1),
        schedule=ScheduleConfig(warmup=400),
    )
