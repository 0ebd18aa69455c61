"""The peers of benchmarks/step.py and benchmarks/cifar_speedrun.py: the same ViT in PyTorch, by others' hands too.

Plain PyTorch (modules and `scaled_dot_product_attention`), timm's VisionTransformer and transformers' ViT, all of one
`ViTConfig`: same sizes, stem, tokens and pooling (transformers reads its class token where ours takes the mean).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.config import ViTConfig
from vit.models.layers import conv_layout

# timm imports torchvision, and torchvision's wheel for another torch has no operators: define the two that it describes.
LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms") if not hasattr(torch.ops.torchvision, "nms") else ():
    LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


class Convolutions(nn.Sequential):
    """A stem of several layers; transformers asks a stem for its `weight`, to see its type."""

    @property
    def weight(self) -> Tensor:
        """The first layer's."""
        return self[0].weight


def stem(config: ViTConfig, channels: int = 3) -> nn.Module:
    """Images (B, C, H, W) → tokens (B, D, h, w): the patch embedding, or the pyramid of strided convolutions."""
    if config.stem == "patch":
        return nn.Conv2d(channels, config.width, config.patch, config.patch)
    layers: list[nn.Module] = []
    for i, o, kernel, stride in conv_layout(config.patch, channels, config.width):
        layers += [nn.Conv2d(i, o, kernel, stride, kernel // 2), nn.GELU()]
    return Convolutions(*layers[:-1])


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        D, self.heads = config.width, config.heads
        self.norm1, self.norm2 = nn.LayerNorm(D, config.eps), nn.LayerNorm(D, config.eps)
        self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.fc1, self.fc2 = nn.Linear(D, config.mlp), nn.Linear(config.mlp, D)

    def forward(self, x: Tensor) -> Tensor:
        """The tokens after this block."""
        B, N, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, D)
        x = x + self.proj(y)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Plain(nn.Module):
    """A Vision Transformer as one writes it in PyTorch."""

    def __init__(self, config: ViTConfig, image_size: int, classes: int):
        super().__init__()
        D, self.token = config.width, config.pool == "token"
        tokens = (image_size // config.patch) ** 2 + self.token
        self.stem = stem(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D)) if self.token else None
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, tokens, D))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm, self.head = nn.LayerNorm(D, config.eps), nn.Linear(D, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        x = self.stem(images).flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x[:, 0] if self.token else x.mean(1))


def timm(config: ViTConfig, image_size: int, classes: int) -> nn.Module:
    """timm's VisionTransformer; the projection of its patch embedding is the stem."""
    from timm.models.vision_transformer import VisionTransformer

    token = config.pool == "token"
    model = VisionTransformer(
        image_size, config.patch, num_classes=classes, embed_dim=config.width, depth=config.depth, num_heads=config.heads,
        mlp_ratio=config.mlp / config.width, class_token=token, global_pool="token" if token else "avg", fc_norm=False,
    )  # fmt: skip
    model.patch_embed.proj = stem(config)
    return model


def transformers(config: ViTConfig, image_size: int, classes: int) -> nn.Module:
    """transformers' ViT, with its default attention (sdpa)."""
    from transformers import ViTConfig as Theirs
    from transformers import ViTForImageClassification

    settings = Theirs(
        hidden_size=config.width, num_hidden_layers=config.depth, num_attention_heads=config.heads, patch_size=config.patch,
        intermediate_size=config.mlp, image_size=image_size, num_labels=classes, hidden_dropout_prob=0.0,
    )  # fmt: skip
    model = ViTForImageClassification(settings)
    model.vit.embeddings.patch_embeddings.projection = stem(config)
    return model


BUILD: dict[str, Callable[[ViTConfig, int, int], nn.Module]] = {"torch": Plain, "timm": timm, "transformers": transformers}


def logits(model: Any, images: Tensor) -> Tensor:
    """What a model says, whether it's in an object or not."""
    out = model(images)
    return out if isinstance(out, Tensor) else out.logits


def train_step(model: nn.Module, compiled: bool, lr: float = 1e-3) -> Callable[[Tensor, Tensor], Tensor]:
    """(images, labels) → loss: forward, backward, fused AdamW."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, fused=True)

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits(model, images), labels)

    forward = torch.compile(loss_of) if compiled else loss_of

    def step(images: Tensor, labels: Tensor) -> Tensor:
        loss = forward(images, labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss.detach()

    return step
