"""Models of every family as timm and transformers build them, small, with random weights."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import tests.parity.torchlike  # noqa: F401  before timm and transformers

# isort: split
import timm
import torch
import transformers as hf
from timm.models._hub import save_for_hf


class Case(NamedTuple):
    """A family in one size: how to build it, to save it, and to run it; the images' size it is made for and another one."""

    name: str
    build: Callable[[], Any]
    save: Callable[[Any, Path], None]
    run: Callable[[Any, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    native: tuple[int, int]
    other: tuple[int, int]


def randomised(model: Any, seed: int = 0) -> Any:
    """Every parameter moved away from what initialisation makes of it: zeros, ones, equal scales."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


# ---- timm ----


def timm_save(model: Any, folder: Path, **args: Any) -> None:
    save_for_hf(model, str(folder), model_args=args or None, safe_serialization=True)


def timm_run(model: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = model.forward_features(images)
    return tokens, model.forward_head(tokens)


def of_timm(family: str, name: str, **args: Any) -> Case:
    """The published model cut to two blocks; `args` are changed and told in config.json, as timm does."""
    sizes = {k: args.pop(k) for k in ("native", "other") if k in args}
    patch = args.get("patch_size") or int(name.split("patch")[1].split("_")[0])
    native = sizes.get("native", (4 * patch, 4 * patch))
    args = {"depth": 2, "num_classes": 5, **args}
    build = lambda: timm.create_model(name, img_size=native, dynamic_img_size=True, **args)  # noqa: E731
    save = partial(timm_save, img_size=list(native), **{k: v for k, v in args.items() if k not in ("depth", "num_classes")})
    other = sizes.get("other", (3 * patch, 6 * patch))
    return Case(f"timm {family}: {name}", build, save, timm_run, native, other)


# ---- transformers ----


def hf_save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)


def hf_run(model: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and the logits, the image's embedding or the pooled vector."""
    more = {}
    if "interpolate_pos_encoding" in model.forward.__code__.co_varnames or type(model).__name__.startswith(
        ("CLIP", "Siglip", "ViT", "DeiT")
    ):
        more["interpolate_pos_encoding"] = True
    kind = type(model).__name__
    if kind.startswith("ViTMAE"):
        patches = images.shape[2] * images.shape[3] // model.config.patch_size**2
        more["noise"] = torch.arange(patches).repeat(len(images), 1) / patches  # nothing masked, in order
    if kind.startswith("Siglip2"):
        P = model.config.vision_config.patch_size if hasattr(model.config, "vision_config") else model.config.patch_size
        B, _, H, W = images.shape
        flat = images.permute(0, 2, 3, 1).reshape(B, H // P, P, W // P, P, 3).swapaxes(2, 3).reshape(B, -1, P * P * 3)
        mask = torch.ones(flat.shape[:2], dtype=torch.long)
        out = model(pixel_values=flat, pixel_attention_mask=mask, spatial_shapes=torch.tensor([[H // P, W // P]] * B))
        return out.last_hidden_state, out.pooler_output
    out = model(images, output_hidden_states=True, **more)
    tokens = getattr(out, "last_hidden_state", None)
    if hasattr(out, "image_embeds"):
        return out.last_hidden_state, out.image_embeds
    if hasattr(out, "logits"):
        base = getattr(model, model.base_model_prefix, None) or getattr(model, "vision_model", None)
        tokens = base(images, **more).last_hidden_state
        return tokens, out.logits
    pooled = getattr(out, "pooler_output", None)
    return tokens, tokens[:, 0] if pooled is None else pooled


def of_hf(family: str, model: Any, config: Any, *, native: int = 32, patch: int = 8, **args: Any) -> Case:
    sizes = args.pop("size", "small")
    D, heads, depth = {"small": (64, 4, 2), "larger": (96, 6, 3)}[sizes]
    common = {
        "hidden_size": D,
        "num_attention_heads": heads,
        "num_hidden_layers": depth,
        "patch_size": patch,
        "image_size": native,
    }
    if config is hf.Siglip2VisionConfig:
        del common["image_size"]
        common["num_patches"] = (native // patch) ** 2
    if config not in (hf.Dinov2Config, hf.Dinov2WithRegistersConfig):
        common["intermediate_size"] = 2 * D + 32
    else:
        common["mlp_ratio"] = 3
    whole = {hf.CLIPForImageClassification: hf.CLIPConfig, hf.SiglipForImageClassification: hf.SiglipConfig}.get(model)

    def build() -> Any:
        if whole:
            text = {
                "num_hidden_layers": 1,
                "hidden_size": 32,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "vocab_size": 99,
            }
            return model(whole(vision_config={**common, **args}, text_config=text, num_labels=5))
        return model(config(**common, **args))

    return Case(
        f"transformers {family}: {model.__name__} {D}", build, hf_save, hf_run, (native, native), (3 * patch, 6 * patch)
    )


def cases() -> list[Case]:
    """Every family, each in two sizes."""
    classes = {"num_labels": 5}
    listed = [
        of_timm("ViT/AugReg", "vit_tiny_patch16_224"),
        of_timm("ViT/AugReg", "vit_small_patch32_224", depth=3, native=(64, 128)),
        of_timm("ViT, QK-norm, mean", "vit_base_patch16_gap_224", embed_dim=96, num_heads=3, qk_norm=True),
        of_timm("ViT, mean, fc_norm", "vit_tiny_patch16_224", global_pool="avg"),
        of_timm("DeiT", "deit_tiny_patch16_224"),
        of_timm("DeiT", "deit_small_distilled_patch16_224", depth=3),
        of_timm("DeiT-III", "deit3_small_patch16_224"),
        of_timm("DeiT-III", "deit3_medium_patch16_224", embed_dim=256, num_heads=4, depth=3),
        of_timm("DINO/MAE", "vit_small_patch16_224", num_classes=0),
        of_timm("DINOv2", "vit_small_patch14_dinov2", num_classes=0),
        of_timm("DINOv2", "vit_giant_patch14_dinov2", embed_dim=128, num_heads=2, num_classes=0, depth=3),
        of_timm("DINOv2 with registers", "vit_small_patch14_reg4_dinov2"),
        of_timm("DINOv2 with registers", "vit_base_patch14_reg4_dinov2", embed_dim=192, num_heads=3, depth=3, num_classes=0),
        of_timm("DINOv3", "vit_small_patch16_dinov3", num_classes=0),
        of_timm("DINOv3", "vit_small_plus_patch16_dinov3_qkvb", global_pool="token", depth=3),
        of_timm("CLIP", "vit_base_patch32_clip_quickgelu_224", embed_dim=192, num_heads=3),
        of_timm("CLIP", "vit_xsmall_patch16_clip_224", depth=3),
        of_timm("SigLIP", "vit_base_patch16_siglip_224", embed_dim=192, num_heads=3, num_classes=0),
        of_timm("SigLIP2", "vit_so400m_patch16_siglip_256", embed_dim=144, num_heads=2, mlp_ratio=3, depth=3),
        of_timm("EVA-02", "eva02_tiny_patch14_224"),
        of_timm("EVA-02", "eva02_base_patch14_448", embed_dim=192, num_heads=3, depth=3),
        of_timm("EVA-02 CLIP", "eva02_base_patch16_clip_224", embed_dim=192, num_heads=3),
    ]
    for size in ("small", "larger"):
        listed += [
            of_hf("ViT", hf.ViTForImageClassification, hf.ViTConfig, size=size, **classes),
            of_hf("DeiT", hf.DeiTForImageClassificationWithTeacher, hf.DeiTConfig, size=size, **classes),
            of_hf("MAE", hf.ViTMAEModel, hf.ViTMAEConfig, size=size, mask_ratio=0.0),
            of_hf("DINOv2", hf.Dinov2ForImageClassification, hf.Dinov2Config, size=size, **classes),
            of_hf(
                "DINOv2 with registers", hf.Dinov2WithRegistersForImageClassification, hf.Dinov2WithRegistersConfig, size=size,
                num_register_tokens=4, **classes,
            ),
            of_hf(
                "DINOv3", hf.DINOv3ViTModel, hf.DINOv3ViTConfig, size=size, num_register_tokens=4,
                **({"use_gated_mlp": True, "hidden_act": "silu"} if size == "larger" else {}),
            ),
            of_hf("CLIP", hf.CLIPVisionModelWithProjection, hf.CLIPVisionConfig, size=size, projection_dim=7),
            of_hf("SigLIP", hf.SiglipVisionModel, hf.SiglipVisionConfig, size=size),
            of_hf("SigLIP2", hf.Siglip2VisionModel, hf.Siglip2VisionConfig, size=size),
        ]  # fmt: skip
    listed += [
        of_hf("ViT with pooler", hf.ViTModel, hf.ViTConfig),
        of_hf("DeiT", hf.DeiTForImageClassification, hf.DeiTConfig, **classes),
        of_hf("CLIP", hf.CLIPVisionModel, hf.CLIPVisionConfig),
        of_hf("CLIP", hf.CLIPForImageClassification, hf.CLIPVisionConfig),
        of_hf("SigLIP", hf.SiglipForImageClassification, hf.SiglipVisionConfig),
        of_hf("DINOv2", hf.Dinov2Model, hf.Dinov2Config),
    ]
    return listed
