"""The Vision Transformer (arXiv 2010.11929): images in, a result and every intermediate out."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float

from vit.config import ViTConfig, validate
from vit.errors import UserError
from vit.models.layers import (
    AttentionPool,
    Block,
    ConvStem,
    Keys,
    LayerNorm,
    Linear,
    Mask,
    PatchEmbed,
    conv_layout,
    dropout,
    fold_in,
    resample_positions,
    sincos_positions,
)

Params = dict[str, Array]  # string path, as blocks/0/attn/qkv/kernel → array


class ViT(nnx.Module):
    """A plain Vision Transformer with a linear head on the pooled tokens.

    Args:
      config: sizes and choices.
      image_size: (H, W) in pixels that learned positions are made for; any other size works at call time.
      channels: of the images, 3 for RGB.
      classes: outputs of the head; 0 for none, the result is then the pooled feature.
      rngs: keys for the initialisation (Xavier, as timm's "jax" scheme; the head starts at zero).
    """

    def __init__(self, config: ViTConfig, *, image_size: tuple[int, int], channels: int, classes: int, rngs: nnx.Rngs):
        self.config = config
        self.grid = patch_grid(config, *image_size)
        D, dtype = config.width, jnp.dtype(config.dtype)
        stem = PatchEmbed if config.stem == "patch" else ConvStem
        self.patch_embed = stem(config.patch, channels, D, dtype=dtype, rngs=rngs)
        self.prefix = int(config.pool == "token")  # tokens before the patch tokens
        if config.pool == "token":
            self.cls_token = nnx.Param(jnp.zeros((1, 1, D)))
        if config.position == "learned":
            tokens = self.prefix + self.grid[0] * self.grid[1]
            self.pos_embed = nnx.Param(0.02 * jax.random.truncated_normal(rngs.params(), -2, 2, (1, tokens, D)))
        shared: Any = {"rate": config.dropout, "fused": config.fused, "dtype": dtype, "rngs": rngs}
        rates = [config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth)]
        self.blocks = nnx.List([Block(D, config.heads, config.mlp, drop_path=rate, **shared) for rate in rates])
        self.norm = LayerNorm(D, dtype=dtype, rngs=rngs)
        if config.pool == "map":
            self.attn_pool = AttentionPool(D, config.heads, config.mlp, dtype=dtype, rngs=rngs)
        if classes:
            self.head = Linear(D, classes, kernel_init=nnx.initializers.zeros, dtype=jnp.float32, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "B H W C"],
        *,
        keys: Keys | None = None,
        mask: Mask | None = None,
        attention: bool = False,
    ) -> tuple[Float[Array, "B K"], dict[str, Any]]:
        """Classify images.

        Args:
          images: normalised pixels; the patch must divide H and W, which needn't be those of training.
          keys: one random key an example, for dropout and stochastic depth; None for evaluation.
          mask: of attention, boolean or additive, broadcast to (B, heads, N, N); N counts the class token, which is first.
          attention: ask for the attention weights.

        Returns:
          float32 logits (or pooled features, if there's no head) and a dict with `embedded` (B, N, D), the input of the first
          block; `blocks`, a list with each block's tokens (B, N, D); `tokens` (B, N, D), the last ones after the final norm;
          `patches` (B, h, w, D), the same without the class token and in their places; `pooled` (B, D); and, asked for,
          `attention`, a list with each block's weights (B, heads, N, N), and with attention pooling `pool_attention`
          (B, heads, N), the weights of its query over the patch tokens.

        Raises:
          UserError: if the patch doesn't divide H and W.
        """
        config, out = self.config, {}
        grid = patch_grid(config, *images.shape[1:3])
        x = self.patch_embed(images.astype(config.dtype))
        x = x.reshape(x.shape[0], -1, config.width)
        x = self._add_positions(x, grid)
        x = out["embedded"] = dropout(x, config.dropout, fold_in(keys, config.depth))

        out["blocks"], weights = [], []
        for i, block in enumerate(self.blocks):
            x, w = block(x, fold_in(keys, i), mask, attention)
            out["blocks"].append(x)
            weights.append(w)
        if attention:
            out["attention"] = weights

        x = out["tokens"] = self.norm(x)
        patches = x[:, self.prefix :]
        out["patches"] = patches.reshape(x.shape[0], *grid, config.width)
        if config.pool == "token":
            pooled = x[:, 0]
        elif config.pool == "mean":
            pooled = patches.mean(axis=1)
        else:
            pooled, w = self.attn_pool(patches)
            out |= {"pool_attention": w} if attention else {}
        out["pooled"] = pooled
        result = self.head(pooled) if hasattr(self, "head") else pooled
        return result.astype(jnp.float32), out

    def _add_positions(self, x: Float[Array, "B M D"], grid: tuple[int, int]) -> Float[Array, "B N D"]:
        """Patch tokens plus their positions, behind the class token if there is one."""
        if self.config.position == "learned":
            table = self.pos_embed[...]
            before, positions = table[:, : self.prefix], resample_positions(table[:, self.prefix :], self.grid, grid)
        else:
            before, positions = 0.0, jnp.asarray(sincos_positions(*grid, self.config.width))
        x = x + positions.astype(x.dtype)
        if not self.prefix:
            return x
        token = (self.cls_token[...] + before).astype(x.dtype)
        return jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, x.shape[2])), x], axis=1)


def create(
    name: str,
    *,
    classes: int = 1000,
    image_size: int | tuple[int, int] = 224,
    channels: int = 3,
    seed: int = 0,
    **changes: Any,
) -> ViT:
    """A freshly initialised ViT by its name, as `create("S/16", classes=1000)`; `changes` are fields of `ViTConfig`.

    Raises `UserError` for an unknown name or a value that isn't possible.
    """
    config = ViTConfig.variant(name, **changes)
    validate(config, f"create({name!r})")
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if classes < 0 or channels < 1 or len(size) != 2:
        what = f"classes {classes}, channels {channels}, image_size {image_size} make no model"
        raise UserError(
            what, f"create({name!r})", "give classes of 0 or more, channels of 1 or more, a side or (height, width)"
        )

    return ViT(config, image_size=size, channels=channels, classes=classes, rngs=nnx.Rngs(seed))


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """A module as its static structure and a flat dict of arrays under string paths."""
    graph, state = nnx.split(model, nnx.Param)
    return graph, {"/".join(map(str, path)): param[...] for path, param in nnx.to_flat_state(state)}


def merge(graph: nnx.GraphDef, params: Params) -> Any:
    """The module again; inverse of `split`."""
    paths = {tuple(int(p) if p.isdigit() else p for p in path.split("/")): x for path, x in params.items()}
    return nnx.merge(graph, unflatten_dict(paths))


def patch_grid(config: ViTConfig, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of patches. Raises `UserError` if the patch doesn't divide the image."""
    P = config.patch
    if height < P or width < P or height % P or width % P:
        fix = f"resize to multiples of {P}, or choose a patch that divides both sides"
        raise UserError(f"patches of {P}x{P} don't tile an image of {height}x{width}", "the model's input", fix)
    return height // P, width // P


def flops(config: ViTConfig, *, image_size: tuple[int, int], channels: int, classes: int) -> int:
    """Operations of the matmuls and convolutions of one image's forward pass (a multiply-add counts as two)."""
    h, w = patch_grid(config, *image_size)
    D, N = config.width, h * w + (config.pool == "token")
    block = N * D * (4 * D + 2 * config.mlp) + 2 * N * N * D  # qkv, proj, mlp; QKᵀ and AV
    if config.stem == "patch":
        stem = h * w * config.patch**2 * channels * D
    else:
        stem, side = 0, 1
        for i, o, kernel, stride in reversed(conv_layout(config.patch, channels, D)):
            stem += h * w * side**2 * kernel**2 * i * o
            side *= stride
    pool = D * D * (2 * N + 2) + 2 * N * D + 2 * D * config.mlp if config.pool == "map" else 0
    return 2 * (stem + config.depth * block + pool + D * classes)
