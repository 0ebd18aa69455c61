"""The parts of a Vision Transformer: attention, MLP, block, patch embedding, attention pooling.

Glossary for shapes: B batch, H W pixels, P patch, N tokens, D width, h heads, d width of a head.
Randomness comes with the call, one key an example; without keys everything is deterministic (evaluation).
"""

import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, Num

from vit.config import ViTConfig

Mask = Bool[Array, "..."] | Int[Array, "..."] | Float[Array, "..."]
Keys = Key[Array, "B"]

# Two passes: flax's fast variance, E[x²] - E[x]², loses all digits of a token whose mean is large.
LayerNorm = functools.partial(nnx.LayerNorm, use_fast_variance=False)
xavier = nnx.initializers.xavier_uniform()
LONG, AT_ONCE = 1024, 256  # tokens beyond which attention goes a few queries at a time, and how many


def attention_weights(
    q: Num[Array, "*batch Nq d"], k: Num[Array, "*batch Nk d"], mask: Mask | None = None
) -> Float[Array, "*batch Nq Nk"]:
    """softmax(QKᵀ/√d + mask) of "Attention Is All You Need" (arXiv 1706.03762), in float32.

    `mask` broadcasts to the result: boolean (True or 1 may be attended to) or additive (-inf may not). A row that may
    attend to nothing is all zeros, with zero gradient.
    """
    scores = jnp.matmul(q, k.mT, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if mask is None:
        return jax.nn.softmax(scores)
    additive = jnp.issubdtype(mask.dtype, jnp.floating)
    scores = scores + (mask.astype(jnp.float32) if additive else jnp.where(mask, 0.0, -jnp.inf))
    # softmax of a row of -inf is NaN, and so is its gradient: give it zeros to work on, then hide the result.
    nothing = jnp.all(jnp.isneginf(scores), axis=-1, keepdims=True)
    return jnp.where(nothing, 0.0, jax.nn.softmax(jnp.where(nothing, 0.0, scores)))


def attention(
    q: Num[Array, "*batch Nq d"],
    k: Num[Array, "*batch Nk d"],
    v: Num[Array, "*batch Nk dv"],
    mask: Mask | None = None,
) -> Float[Array, "*batch Nq dv"]:
    """softmax(QKᵀ/√d + mask)V; see `attention_weights` for the mask."""
    v = v if jnp.issubdtype(v.dtype, jnp.floating) else v.astype(jnp.float32)
    return jnp.matmul(attention_weights(q, k, mask).astype(v.dtype), v)


def long_attention(
    q: Num[Array, "*batch Nq d"],
    k: Num[Array, "*batch Nk d"],
    v: Num[Array, "*batch Nk dv"],
    mask: Mask | None = None,
) -> Float[Array, "*batch Nq dv"]:
    """The same as `attention`, a few queries at a time and once more in the backward pass: its memory is linear in the tokens.

    The weights of 4,096 tokens would take 64 MB a head.
    """
    count = q.shape[-2]
    parts = -(-count // AT_ONCE)
    spare = parts * AT_ONCE - count

    def cut(x: Array) -> Array:
        """Parts of the queries in front."""
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, spare), (0, 0)])
        return jnp.moveaxis(x.reshape(*x.shape[:-2], parts, AT_ONCE, x.shape[-1]), -3, 0)

    some = jax.checkpoint(lambda part: attention(part[0], k, v, part[1] if len(part) > 1 else mask))
    each = () if mask is None or mask.ndim < 2 or mask.shape[-2] == 1 else (cut(mask),)
    y = jnp.moveaxis(jax.lax.map(some, (cut(q), *each)), 0, -3)
    return y.reshape(*y.shape[:-3], parts * AT_ONCE, y.shape[-1])[..., :count, :]


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x·Φ(x) (arXiv 1606.08415), with erf as torch has it: `jax.nn.gelu` takes erfc, a sixth of a training step on a CPU."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "swiglu": lambda x: jax.nn.silu(x[..., : x.shape[-1] // 2]) * x[..., x.shape[-1] // 2 :],
}


def fold_in(keys: Keys | None, number: int) -> Keys | None:
    """An independent key an example from each key; None stays None."""
    return None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def dropout(x: Float[Array, "B ..."], rate: float, keys: Keys | None, whole: bool = False) -> Float[Array, "B ..."]:
    """Zero a share `rate` of an example's values and scale up the rest; `whole` drops all of them or none.

    `whole=True` on a residual branch is stochastic depth (drop path, arXiv 1603.09382).
    """
    if keys is None or rate == 0:
        return x
    shape = (1,) * (x.ndim - 1) if whole else x.shape[1:]
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, shape))(keys)
    return jnp.where(kept, x / (1 - rate), 0)


class Linear(nnx.Linear):
    """`nnx.Linear` on a matrix: XLA's CPU backward of a rank-3 product is several times slower."""

    def __call__(self, inputs: Float[Array, "*batch Din"], out_sharding: None = None) -> Float[Array, "*batch Dout"]:
        """inputs·kernel + bias over the last axis."""
        x = super().__call__(inputs.reshape(-1, inputs.shape[-1]), out_sharding)
        return x.reshape(*inputs.shape[:-1], self.out_features)


def _qkv_init(key: Array, shape: Sequence[int], dtype: DTypeLike) -> Array:
    """Xavier as if the three matrices were apart, as timm does it for JAX-style initialisation."""
    return jnp.concatenate([xavier(k, (shape[0], shape[1] // 3), dtype) for k in jax.random.split(key, 3)], axis=1)


class SelfAttention(nnx.Module):
    """Multi-head self-attention with one matrix for queries, keys and values.

    `bias` tells which of them have one ("qkv", "qv" or "none"), `norms` what else is normalised: "qk" within each head, "out"
    the attended values.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        bias: str = "qkv",
        norms: Collection[str] = (),
        eps: float = 1e-6,
        fused: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.heads, self.fused = heads, fused
        self.qkv = Linear(width, 3 * width, use_bias=bias == "qkv", kernel_init=_qkv_init, dtype=dtype, rngs=rngs)
        if bias == "qv":
            self.qv_bias = nnx.Param(jnp.zeros(2 * width))
        if "qk" in norms:
            self.q_norm, self.k_norm = (LayerNorm(width // heads, epsilon=eps, dtype=dtype, rngs=rngs) for _ in range(2))
        if "out" in norms:
            self.norm = LayerNorm(width, epsilon=eps, dtype=dtype, rngs=rngs)
        self.proj = Linear(width, width, kernel_init=xavier, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B N D"],
        mask: Mask | None = None,
        with_weights: bool = False,
        rotate: Callable[[Array], Array] | None = None,
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B h N N"] | None]:
        """Attended tokens, and the attention weights if asked for. `mask` broadcasts to (B, h, N, N).

        `rotate` turns queries and keys (B, h, N, d) by their places.
        """
        B, N, D = x.shape
        qkv = self.qkv(x)
        if hasattr(self, "qv_bias"):
            bias = self.qv_bias[...].astype(qkv.dtype)
            qkv = qkv + jnp.concatenate([bias[:D], jnp.zeros_like(bias[:D]), bias[D:]])
        q, k, v = qkv.reshape(B, N, 3, self.heads, D // self.heads).transpose(2, 0, 3, 1, 4)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        weights = attention_weights(q, k, mask) if with_weights else None
        if self.fused and mask is None:  # with a mask, its rows that may attend to nothing would not be zeros
            y = jax.nn.dot_product_attention(*(z.swapaxes(1, 2) for z in (q, k, v)))
        else:
            attend = attention if N <= LONG or with_weights else long_attention
            y = attend(q, k, v, mask).swapaxes(1, 2)  # XLA computes parts shared with the weights once
        y = y.reshape(B, N, D)
        return self.proj(self.norm(y) if hasattr(self, "norm") else y), weights


class Mlp(nnx.Module):
    """The feed-forward network of a block: D → hidden → D with an activation between.

    The gated "swiglu" has gate and value side by side in its first matrix. With `norm` the hidden values are normalised.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: str = "gelu",
        norm: bool = False,
        eps: float = 1e-6,
        rate: float = 0.0,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        small = nnx.initializers.normal(1e-6)
        self.rate, self.activation = rate, activation
        wide = 2 * hidden if activation == "swiglu" else hidden
        self.fc1 = Linear(width, wide, kernel_init=xavier, bias_init=small, dtype=dtype, rngs=rngs)
        if norm:
            self.norm = LayerNorm(hidden, epsilon=eps, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(hidden, width, kernel_init=xavier, bias_init=small, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*batch N D"], keys: Keys | None = None) -> Float[Array, "*batch N D"]:
        """Each token on its own; `keys` for dropout of the hidden values."""
        x = dropout(ACTIVATIONS[self.activation](self.fc1(x)), self.rate, keys)
        return self.fc2(self.norm(x) if hasattr(self, "norm") else x)


class Block(nnx.Module):
    """A pre-norm Transformer block: x + attention(norm(x)), then x + mlp(norm(x)), each branch scaled on request."""

    def __init__(self, config: ViTConfig, drop_path: float, *, dtype: DTypeLike, rngs: nnx.Rngs):
        D, self.rate, self.drop_path = config.width, config.dropout, drop_path
        shared: Any = {"eps": config.eps, "dtype": dtype, "rngs": rngs}
        norms = ["qk"] * config.qk_norm + ["out"] * (config.inner_norm == "both")
        self.norm1 = LayerNorm(D, epsilon=config.eps, dtype=dtype, rngs=rngs)
        self.attn = SelfAttention(D, config.heads, bias=config.qkv_bias, norms=norms, fused=config.fused, **shared)
        self.norm2 = LayerNorm(D, epsilon=config.eps, dtype=dtype, rngs=rngs)
        inner = config.inner_norm != "none"
        self.mlp = Mlp(D, config.mlp, activation=config.activation, norm=inner, rate=config.dropout, **shared)
        if config.layer_scale:
            self.scale1, self.scale2 = (nnx.Param(jnp.full(D, config.layer_scale, jnp.float32)) for _ in range(2))

    def __call__(
        self,
        x: Float[Array, "B N D"],
        keys: Keys | None = None,
        mask: Mask | None = None,
        with_weights: bool = False,
        rotate: Callable[[Array], Array] | None = None,
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B h N N"] | None]:
        """The tokens after this block, and its attention weights if asked for."""
        y, weights = self.attn(self.norm1(x), mask, with_weights, rotate)
        y = y * self.scale1[...].astype(y.dtype) if hasattr(self, "scale1") else y
        x = x + dropout(dropout(y, self.rate, fold_in(keys, 0)), self.drop_path, fold_in(keys, 1), whole=True)
        y = self.mlp(self.norm2(x), fold_in(keys, 2))
        y = y * self.scale2[...].astype(y.dtype) if hasattr(self, "scale2") else y
        x = x + dropout(dropout(y, self.rate, fold_in(keys, 3)), self.drop_path, fold_in(keys, 4), whole=True)
        return x, weights


class PatchEmbed(nnx.Module):
    """Each P×P patch, flattened (row, column, channel) and mapped linearly to a token."""

    def __init__(self, patch: int, channels: int, width: int, *, bias: bool = True, dtype: DTypeLike, rngs: nnx.Rngs):
        self.patch = patch
        self.proj = Linear(patch * patch * channels, width, use_bias=bias, kernel_init=xavier, dtype=dtype, rngs=rngs)

    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """The grid of tokens."""
        B, H, W, C = images.shape
        P = self.patch
        patches = images.reshape(B, H // P, P, W // P, P, C).swapaxes(2, 3)
        return self.proj(patches.reshape(B, H // P, W // P, P * P * C))


class ConvStem(nnx.Module):
    """Strided convolutions (3x3 at stride 2) in place of the patch embedding (arXiv 2106.14881).

    One convolution for each prime factor of the patch (16 = 2·2·2·2 gives four of stride 2), with the width doubling
    up to D and a GELU between.
    """

    def __init__(self, patch: int, channels: int, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.convs = nnx.List(
            [
                nnx.Conv(i, o, (kernel, kernel), stride, padding="SAME", kernel_init=xavier, dtype=dtype, rngs=rngs)
                for i, o, kernel, stride in conv_layout(patch, channels, width)
            ]
        )

    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """The grid of tokens."""
        x = self.convs[0](images)
        for conv in self.convs[1:]:
            x = conv(gelu(x))
        return x


def conv_layout(patch: int, channels: int, width: int) -> list[tuple[int, int, int, int]]:
    """Inputs, outputs, kernel side and stride of each convolution of the stem."""
    strides = prime_factors(patch) or [1]
    widths = [channels, *(max(1, width >> i) for i in reversed(range(len(strides))))]
    return [(i, o, (stride + 1) | 1, stride) for i, o, stride in zip(widths, widths[1:], strides, strict=False)]


def prime_factors(n: int) -> list[int]:
    """12 → [2, 2, 3]."""
    for p in range(2, math.isqrt(n) + 1):
        if n % p == 0:
            return [p, *prime_factors(n // p)]
    return [n] if n > 1 else []


class AttentionPool(nnx.Module):
    """MAP: one learned token asks all others (arXiv 2106.04560, appendix), then a residual MLP."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp: int,
        *,
        activation: str = "gelu",
        eps: float = 1e-6,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        self.latent = nnx.Param(xavier(rngs.params(), (1, 1, width)))
        self.q = Linear(width, width, kernel_init=xavier, dtype=dtype, rngs=rngs)
        self.k = Linear(width, width, kernel_init=xavier, dtype=dtype, rngs=rngs)
        self.v = Linear(width, width, kernel_init=xavier, dtype=dtype, rngs=rngs)
        self.proj = Linear(width, width, kernel_init=xavier, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(width, epsilon=eps, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(width, mlp, activation=activation, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B N D"]) -> tuple[Float[Array, "B D"], Float[Array, "B h N"]]:
        """One vector of all tokens, and the attention weights."""
        B, _, D = x.shape

        def split(y: Float[Array, "B N D"]) -> Float[Array, "B h N d"]:
            return y.reshape(B, -1, self.heads, D // self.heads).swapaxes(1, 2)

        latent = jnp.broadcast_to(self.latent[...], (B, 1, D)).astype(x.dtype)
        weights = attention_weights(split(self.q(latent)), split(self.k(x)))
        y = jnp.matmul(weights.astype(x.dtype), split(self.v(x)))
        y = self.proj(y.swapaxes(1, 2).reshape(B, 1, D))
        return (y + self.mlp(self.norm(y)))[:, 0], weights[:, :, 0]
