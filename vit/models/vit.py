"""The Vision Transformer (arXiv 2010.11929): images in, a result and every intermediate out."""

import functools
from collections.abc import Callable
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
    recomputed,
    xavier,
)
from vit.models.positions import resample_positions, rotation, sincos_positions

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
        self.config, self.classes = config, classes
        self.grid = patch_grid(config, *image_size)
        D, dtype = config.width, jnp.dtype(config.dtype)
        shared: Any = {"dtype": dtype, "rngs": rngs}
        if config.stem == "patch":
            self.patch_embed = PatchEmbed(config.patch, channels, D, bias=config.patch_bias, **shared)
        else:
            self.patch_embed = ConvStem(config.patch, channels, D, **shared)
        self.prefix, self.positioned = prefix_tokens(config)
        if self.prefix > config.registers:
            self.cls_token = nnx.Param(jnp.zeros((1, 1, D)))
        if config.registers:
            self.registers = nnx.Param(1e-6 * jax.random.normal(rngs.params(), (1, config.registers, D)))
        if config.position == "learned":
            tokens = self.positioned + self.grid[0] * self.grid[1]
            self.pos_embed = nnx.Param(0.02 * jax.random.truncated_normal(rngs.params(), -2, 2, (1, tokens, D)))
        norm = functools.partial(LayerNorm, D, epsilon=config.eps, **shared)
        if config.pre_norm:
            self.pre_norm = norm()
        rates = [config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth)]
        self.blocks = nnx.List([Block(config, rate, **shared) for rate in rates])
        if config.final_norm == "tokens":
            self.norm = norm()
        if config.final_norm == "pooled":
            self.fc_norm = norm()
        if config.pool == "map":
            activation = "gelu" if config.activation == "swiglu" else config.activation
            self.attn_pool = AttentionPool(D, config.heads, config.mlp, activation=activation, eps=config.eps, **shared)
        features = 2 * D if config.pool == "token_mean" else D
        if config.pre_logits:
            self.pre_logits = Linear(features, config.pre_logits, kernel_init=xavier, **shared)
        if classes:
            head = functools.partial(Linear, kernel_init=nnx.initializers.zeros, dtype=jnp.float32, rngs=rngs)
            self.head = head(config.pre_logits or features, classes)
            if config.distilled:
                self.head_dist = head(config.pre_logits or features, classes)

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
          mask: of attention, boolean or additive, broadcast to (B, heads, N, N); N counts the class token, which is
            first, and the registers behind it.
          attention: ask for the attention weights.

        Returns:
          float32 logits (or features, if there's no head) and a dict with `embedded` (B, N, D), the input of the first
          block; `blocks`, a list with each block's tokens (B, N, D); `tokens` (B, N, D), the last ones, normalised unless that
          comes after pooling; `patches` (B, h, w, D), the same without class token and registers and in their places; `pooled`
          (B, D), with class token and mean side by side (B, 2D); and, asked for, `attention`, a list with each block's weights
          (B, heads, N, N), and with attention pooling `pool_attention` (B, heads, N), the weights of its query over the patch
          tokens.

        Raises:
          UserError: if the patch doesn't divide H and W.
        """
        config, out = self.config, {}
        grid = patch_grid(config, *images.shape[1:3])
        x = out["embedded"] = self.embed(images, keys)
        rotate = self.rotation(grid)

        out["blocks"], weights = [], []
        for i in range(len(self.blocks)):
            with jax.named_scope(f"blocks/{i}"):
                x, w = self.through(i, x, grid, fold_in(keys, i), mask, attention, rotate)
            out["blocks"].append(x)
            weights.append(w)
        if attention:
            out["attention"] = weights

        x = out["tokens"] = self.norm(x) if config.final_norm == "tokens" else x
        patches = x[:, self.prefix :]
        out["patches"] = patches.reshape(x.shape[0], *grid, config.width)
        pooled, w = self._pool(x, patches)
        pooled = out["pooled"] = self.fc_norm(pooled) if config.final_norm == "pooled" else pooled
        if attention and w is not None:
            out["pool_attention"] = w
        if config.distilled and self.classes:
            result = (self.head(self._represent(x[:, 0])) + self.head_dist(self._represent(x[:, 1]))) / 2
        else:
            result = self._represent(pooled)
            result = self.head(result) if self.classes else result
        return result.astype(jnp.float32), out

    def through(
        self,
        i: int,
        x: Float[Array, "B N D"],
        grid: tuple[int, int],
        keys: Keys | None,
        mask: Mask | None,
        attention: bool,
        rotate: Callable[[Array], Array] | None,
    ) -> tuple[Float[Array, "B N D"], Any]:
        """Block i; a subclass may cut the patches, `grid` of them behind the other tokens, into windows before."""
        if self.config.remat and not attention:
            return recomputed(self.blocks[i], x, keys, mask, attention, rotate), None
        return self.blocks[i](x, keys, mask, attention, rotate)

    def embed(self, images: Float[Array, "B H W C"], keys: Keys | None = None) -> Float[Array, "B N D"]:
        """The input of the first block: class token and registers, where there are any, and patches, with their positions."""
        config, grid = self.config, patch_grid(self.config, *images.shape[1:3])
        x = self.patch_embed(images.astype(config.dtype))
        x = x.reshape(x.shape[0], -1, config.width)
        x = dropout(self._add_positions(x, grid), config.dropout, fold_in(keys, config.depth))
        return self.pre_norm(x) if config.pre_norm else x

    def rotation(self, grid: tuple[int, int], before: int = 0) -> Callable[[Array], Array] | None:
        """What turns queries and keys where positions are rotary; `before` tokens more stand in front of all others."""
        config = self.config
        if config.rope == "none":
            return None
        return rotation(config.rope, grid, before + self.prefix, config.width // config.heads)

    def _pool(
        self, x: Float[Array, "B N D"], patches: Float[Array, "B M D"]
    ) -> tuple[Float[Array, "B F"], Float[Array, "B h M"] | None]:
        """One vector of all tokens, and the weights of attention pooling."""
        pool = self.config.pool
        if pool == "map":
            return self.attn_pool(patches)
        if pool == "token":
            return x[:, :2].mean(axis=1) if self.config.distilled else x[:, 0], None
        mean = patches.mean(axis=1)
        return mean if pool == "mean" else jnp.concatenate([x[:, 0], mean], axis=1), None

    def _represent(self, pooled: Float[Array, "B F"]) -> Float[Array, "B R"]:
        """The tanh layer before the head, where there is one."""
        return jnp.tanh(self.pre_logits(pooled)) if self.config.pre_logits else pooled

    def _add_positions(self, x: Float[Array, "B M D"], grid: tuple[int, int]) -> Float[Array, "B N D"]:
        """Patch tokens plus their positions, behind the class token and the registers if there are any."""
        config, count, before = self.config, self.positioned, None
        if config.position == "learned":
            table = self.pos_embed[...]
            before = table[:, :count]
            x = x + resample_positions(table[:, count:], self.grid, grid, config.resample).astype(x.dtype)
        elif config.position == "sincos":
            x = x + jnp.asarray(sincos_positions(*grid, config.width)).astype(x.dtype)
        names = [name for name in ("cls_token", "registers") if hasattr(self, name)]
        if not names:
            return x
        tokens = jnp.concatenate([getattr(self, name)[...] for name in names], axis=1)
        if before is not None:
            tokens = tokens.at[:, :count].add(before)
        tokens = jnp.broadcast_to(tokens.astype(x.dtype), (x.shape[0], *tokens.shape[1:]))
        return jnp.concatenate([tokens, x], axis=1)


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
    return graph, {"/".join(map(str, path)): param.get_value() for path, param in nnx.to_flat_state(state)}


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


def prefix_tokens(config: ViTConfig) -> tuple[int, int]:
    """Tokens before the patches, and how many of them a table of learned positions covers."""
    class_token = int(config.class_token or config.pool in ("token", "token_mean"))
    prefix = class_token + config.registers
    return prefix, {"all": prefix, "class": class_token, "patches": 0}[config.positioned]


def flops(config: ViTConfig, *, image_size: tuple[int, int], channels: int, classes: int) -> int:
    """Operations of the matmuls and convolutions of one image's forward pass (a multiply-add counts as two)."""
    h, w = patch_grid(config, *image_size)
    D, N = config.width, h * w + prefix_tokens(config)[0]
    matrices = 3 if config.activation == "swiglu" else 2
    block = N * D * (4 * D + matrices * config.mlp) + 2 * N * N * D  # qkv, proj, mlp; QKᵀ and AV
    if config.stem == "patch":
        stem = h * w * config.patch**2 * channels * D
    else:
        stem, side = 0, 1
        for i, o, kernel, stride in reversed(conv_layout(config.patch, channels, D)):
            stem += h * w * side**2 * kernel**2 * i * o
            side *= stride
    M = h * w  # what attention pooling reads
    pool = D * D * (2 * M + 2) + 2 * M * D + 2 * D * config.mlp if config.pool == "map" else 0
    features = 2 * D if config.pool == "token_mean" else D
    head = features * config.pre_logits + (config.pre_logits or features) * classes
    return 2 * (stem + config.depth * block + pool + head * (1 + (config.distilled and classes > 0)))
