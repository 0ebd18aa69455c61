"""timm and transformers beside torch's CPU wheel, whose torchvision has no operators."""

import torch

LIBRARY = torch.library.Library("torchvision", "DEF")  # kept alive: its operators vanish with it
for name in ("nms", "qnms"):
    LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
torch.set_num_threads(2)
