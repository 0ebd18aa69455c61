"""The backbone's settings: sizes, and which of the parts that pretrained families differ in. No behaviour, no jax."""

from dataclasses import dataclass
from typing import Any, Literal

from vit.errors import UserError
from vit.limits import Count, Natural, NonNegative, Positive, Share

# name: (width, depth, heads, MLP width). Ti to L: https://arxiv.org/abs/2010.11929 and https://arxiv.org/abs/2012.12877;
# g: https://arxiv.org/abs/2106.04560, table 2.
VARIANTS = {
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
    "g": (1408, 40, 16, 6144),
}


@dataclass(frozen=True)
class ViTConfig:
    """The backbone. `ViTConfig.variant("S/16")` gives the published sizes."""

    patch: Count = 16
    """Side of a square patch in pixels."""
    width: Count = 192
    """Embedding dimension D of a token."""
    depth: Count = 12
    """Number of blocks."""
    heads: Count = 3
    """Attention heads; they divide the width."""
    mlp: Count = 768
    """Hidden width of each block's MLP."""
    stem: Literal["patch", "conv"] = "patch"
    """Patch embedding: one linear map of each patch, or a pyramid of strided 3x3 convolutions (arXiv 2106.14881)."""
    position: Literal["learned", "sincos", "none"] = "learned"
    """Position embedding: learned (resampled at other sizes), fixed 2-D sin-cos (computed at any size), or none."""
    positioned: Literal["all", "class", "patches"] = "all"
    """Learned positions for all tokens, for the class token and the patches, or for the patches alone."""
    resample: Literal["cubic", "cubic_torch", "linear"] = "cubic"
    """Learned positions at other sizes: cubic or linear with antialiasing, or PyTorch's cubic (a = -0.75) without."""
    rope: Literal["none", "dinov3", "eva"] = "none"
    """Rotary positions of the patch tokens in every attention, as in DINOv3 (arXiv 2508.10104) or EVA-02 (2303.11331)."""
    class_token: bool = False
    """A class token even where the pooling reads none."""
    registers: Natural = 0
    """Learned tokens between class token and patches (arXiv 2309.16588); DeiT's distillation token is one of them."""
    distilled: bool = False
    """A second head on the first register; the result is the mean of both heads' (DeiT, arXiv 2012.12877)."""
    pool: Literal["token", "mean", "map", "token_mean"] = "token"
    """Class token, mean of the patch tokens, multi-head attention pooling, or class token and mean side by side."""
    final_norm: Literal["tokens", "pooled", "none"] = "tokens"
    """The last normalisation: of all tokens, of the pooled vector alone, or none."""
    pre_norm: bool = False
    """Normalise the embedded tokens before the first block, as CLIP does."""
    pre_logits: Natural = 0
    """Width of a tanh layer before the head; 0: none."""
    patch_bias: bool = True
    """A bias in the patch embedding."""
    qkv_bias: Literal["qkv", "qv", "none"] = "qkv"
    """Biases of queries, keys and values; of queries and values alone; or none."""
    qk_norm: bool = False
    """Normalise queries and keys within each head (arXiv 2302.05442)."""
    layer_scale: NonNegative = 0.0
    """First value of a learned scale of each residual branch (arXiv 2103.17239); 0: none."""
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu"] = "gelu"
    """Of the MLPs: GELU exact, by tanh, as x·sigmoid(1.702x), or the gated SiLU (arXiv 2002.05202, with 3 matrices)."""
    inner_norm: Literal["none", "mlp", "both"] = "none"
    """A further normalisation of the MLP's hidden values, or of the attended values too (EVA-02)."""
    eps: Positive = 1e-6
    """Added to the variance in every normalisation."""
    drop_path: Share = 0.0
    """Stochastic depth: rate of the last block, growing linearly from 0 at the first."""
    dropout: Share = 0.0
    """Dropout rate on the embeddings and inside each residual branch."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the matmuls. Parameters, softmax, normalisation statistics and loss stay float32."""
    remat: bool = False
    """Compute each block once more in the backward pass instead of keeping what's inside it: less memory, a third more time."""

    @classmethod
    def variant(cls, name: str, **changes: Any) -> "ViTConfig":
        """`"S/16"`: the size before the slash (Ti, S, B, L, H or g), the patch side after it."""
        size, _, patch = name.partition("/")
        if size not in VARIANTS or not patch.isdecimal() or int(patch) == 0:
            fix = f"give SIZE/PATCH, as S/16; sizes: {', '.join(VARIANTS)}"
            raise UserError(f"there is no ViT called {name!r}", "the variant's name", fix)
        width, depth, heads, mlp = VARIANTS[size]
        return cls(**{"patch": int(patch), "width": width, "depth": depth, "heads": heads, "mlp": mlp, **changes})
