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
from jaxtyping import Array, Float, Key

from vit.config import ViTConfig
from vit.models.attention import Mask as Mask
from vit.models.attention import attend, attention_weights, heads_are_shared, platform, spread
from vit.models.attention import attention as attention

Keys = Key[Array, "B"]

xavier = nnx.initializers.xavier_uniform()


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x·Φ(x) (arXiv 1606.08415), with erf as torch has it: `jax.nn.gelu` takes erfc, a sixth of a training step on a CPU."""
    return _gelu_by_hand(x) if on_one_cpu() else _gelu(x)


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def _gelu_backward(x: Array, dy: Array) -> tuple[Array]:
    x = late(x, dy)  # or XLA's CPU compiler keeps erf for here, as large as x
    return (dy * (0.5 * (1 + jax.lax.erf(x * 0.5**0.5)) + x * jnp.exp(-0.5 * x * x) * (2 * jnp.pi) ** -0.5),)


_gelu_by_hand = jax.custom_vjp(_gelu)
_gelu_by_hand.defvjp(lambda x: (_gelu(x), x), _gelu_backward)


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


def on_one_cpu() -> bool:
    """Whether the program being traced will run on one CPU device: on several, XLA would cut and send what is only for one."""
    return platform() == "cpu" and jax.device_count() == 1


def late(parameter: Float[Array, "*any"], x: Array) -> Float[Array, "*any"]:
    """The parameter, not before x is there: it is added what is always 0, though XLA doesn't know.

    XLA's CPU compiler makes scales and biases as large as the tokens that they are for, and all when the program begins.
    """
    if not on_one_cpu() or not x.size:
        return parameter
    first = jax.lax.stop_gradient(x).ravel()[0]
    return parameter + (jnp.isnan(first) & jnp.isinf(first)).astype(parameter.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: Float[Array, "*batch D"], scale: Float[Array, "D"], bias: Float[Array, "D"], eps: float) -> Array:
    """(x - mean) / standard deviation · scale + bias of each token (arXiv 1607.06450), in float32.

    The variance in a second pass: E[x²] - E[x]², as flax has it, loses all digits of a token whose mean is large.
    """
    return _norm_forward(x, scale, bias, eps)[0]


def _norm_forward(x: Array, scale: Array, bias: Array, eps: float) -> tuple[Array, tuple[Array, ...]]:
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True)
    centred = wide - mean
    inverse = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)
    return centred * inverse * scale + bias, (x, mean, inverse, scale)


def _norm_backward(eps: float, saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array]:
    """The gradients by hand, from what a token and two numbers tell: JAX by itself keeps three times as much."""
    x, mean, inverse, scale = saved
    mean, inverse, scale = (late(z, dy) for z in (mean, inverse, scale))  # or XLA keeps the forward pass's products for here
    unit, dunit = (x.astype(jnp.float32) - mean) * inverse, dy * scale
    along, across = dunit.mean(axis=-1, keepdims=True), (dunit * unit).mean(axis=-1, keepdims=True)
    tokens = tuple(range(dy.ndim - 1))
    dx = (inverse * (dunit - along - unit * across)).astype(x.dtype)
    return dx, (dy * unit).sum(tokens).astype(scale.dtype), dy.sum(tokens).astype(scale.dtype)


layer_norm.defvjp(_norm_forward, _norm_backward)


class LayerNorm(nnx.LayerNorm):
    """`nnx.LayerNorm` through `layer_norm`."""

    def __call__(self, x: Float[Array, "*batch D"], *, mask: Any = None) -> Float[Array, "*batch D"]:
        """Each token normalised."""
        assert self.scale is not None
        assert self.bias is not None
        scale, bias = late(self.scale[...], x), late(self.bias[...], x)
        return jnp.asarray(layer_norm(x, scale, bias, self.epsilon), self.dtype)


class Linear(nnx.Linear):
    """`nnx.Linear` on a matrix: XLA's CPU backward of a rank-3 product is several times slower."""

    def __call__(self, inputs: Float[Array, "*batch Din"], out_sharding: None = None) -> Float[Array, "*batch Dout"]:
        """inputs·kernel + bias over the last axis."""
        x, kernel, bias = inputs.reshape(-1, inputs.shape[-1]), self.kernel[...], self.bias
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = x @ kernel
        y = y if bias is None else y + late(bias[...], y).astype(y.dtype)
        return y.reshape(*inputs.shape[:-1], self.out_features)


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
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.heads = heads
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
        q, k, v = self._by_heads(x.reshape(B * N, D)).reshape(B, N, 3, self.heads, D // self.heads).transpose(2, 0, 3, 1, 4)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        weights = attention_weights(q, k, mask) if with_weights else None
        y = attend(q, k, v, mask).swapaxes(1, 2).reshape(B, N, D)  # XLA computes what it shares with the weights once
        return self.proj(self.norm(y) if hasattr(self, "norm") else y), weights

    def _by_heads(self, x: Float[Array, "M D"]) -> Float[Array, "M 3 h d"]:
        """Queries, keys and values of each token."""
        D = x.shape[-1]
        shape = 3, self.heads, D // self.heads
        if heads_are_shared():  # each device multiplies by its own heads' columns, which are not side by side
            kernel = spread(self.qkv.kernel[...].reshape(D, *shape), None, None, "tensor", None)
            dtype = self.qkv.dtype
            qkv = jnp.tensordot(x.astype(dtype), kernel.astype(dtype), 1)
            qkv = qkv if self.qkv.bias is None else qkv + self.qkv.bias[...].astype(dtype).reshape(shape)
        else:
            qkv = self.qkv(x).reshape(-1, *shape)
        if hasattr(self, "qv_bias"):
            bias = self.qv_bias[...].astype(qkv.dtype)
            qkv = qkv + jnp.concatenate([bias[:D], jnp.zeros_like(bias[:D]), bias[D:]]).reshape(shape)
        return qkv


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
        self.attn = SelfAttention(D, config.heads, bias=config.qkv_bias, norms=norms, **shared)
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
        with jax.named_scope("attn"):
            y, weights = self.attn(self.norm1(x), mask, with_weights, rotate)
        y = y * self.scale1[...].astype(y.dtype) if hasattr(self, "scale1") else y
        x = x + dropout(dropout(y, self.rate, fold_in(keys, 0)), self.drop_path, fold_in(keys, 1), whole=True)
        with jax.named_scope("mlp"):
            y = self.mlp(self.norm2(x), fold_in(keys, 2))
        y = y * self.scale2[...].astype(y.dtype) if hasattr(self, "scale2") else y
        x = x + dropout(dropout(y, self.rate, fold_in(keys, 3)), self.drop_path, fold_in(keys, 4), whole=True)
        return x, weights


def recomputed(block: nnx.Module, x: Float[Array, "B N D"], *rest: Any) -> Float[Array, "B N D"]:
    """block(x, *rest)[0], of which nothing is kept for the backward pass but x: there it is computed once more.

    What `jax.checkpoint` does. But its barrier, which keeps the second pass from being done along with the first, is gone when
    XLA's CPU compiler orders the work, and nothing is saved: here the second pass needs numbers of the gradient, zeros.
    """
    graph, params = nnx.split(block)

    def run(params: Any, x: Array) -> Array:
        return nnx.merge(graph, params)(x, *rest)[0]

    def forward(params: Any, x: Array) -> tuple[Array, tuple[Any, Array]]:
        return run(params, x), (params, x)

    def backward(saved: tuple[Any, Array], dy: Array) -> tuple[Any, Array]:
        params, x = saved
        zero = jnp.minimum(jnp.abs(dy[:, :1, :1]), 0)
        return jax.vjp(run, params, x + zero)[1](dy)

    twice = jax.custom_vjp(run)
    twice.defvjp(forward, backward)
    return twice(params, x)


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


class Conv(nnx.Conv):
    """`nnx.Conv` with padding to the same size; on a CPU the matrix product of its patches: XLA's own takes twice as long."""

    def __call__(self, inputs: Float[Array, "B H W C"], out_sharding: None = None) -> Float[Array, "B h w Dout"]:
        """The convolution, one output a stride."""
        if platform() != "cpu":
            return super().__call__(inputs)
        assert isinstance(self.strides, int)
        assert self.bias is not None
        kernel, stride = self.kernel[...].astype(self.dtype), self.strides
        rows, columns, C, D = kernel.shape
        padding = jax.lax.padtype_to_pads(inputs.shape[1:3], (rows, columns), (stride, stride), "SAME")
        x = jnp.pad(inputs.astype(self.dtype), ((0, 0), *padding, (0, 0)))
        h, w = ((n - k) // stride for n, k in zip(x.shape[1:3], (rows, columns), strict=True))  # the last one's place
        ends = [(i, i + h * stride + 1, j, j + w * stride + 1) for i in range(rows) for j in range(columns)]
        patches = jnp.concatenate([x[:, i:down:stride, j:right:stride] for i, down, j, right in ends], axis=-1)
        y = patches.reshape(-1, rows * columns * C) @ kernel.reshape(-1, D) + self.bias[...].astype(self.dtype)
        return y.reshape(*patches.shape[:3], D)


class ConvStem(nnx.Module):
    """Strided convolutions (3x3 at stride 2) in place of the patch embedding (arXiv 2106.14881).

    One convolution for each prime factor of the patch (16 = 2·2·2·2 gives four of stride 2), with the width doubling
    up to D and a GELU between.
    """

    def __init__(self, patch: int, channels: int, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        shared: Any = {"padding": "SAME", "kernel_init": xavier, "dtype": dtype, "rngs": rngs}
        layout = conv_layout(patch, channels, width)
        self.convs = nnx.List([Conv(i, o, (kernel, kernel), stride, **shared) for i, o, kernel, stride in layout])

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
        self, width: int, heads: int, mlp: int, *, activation: str = "gelu", eps: float = 1e-6, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.heads = heads
        self.latent = nnx.Param(xavier(rngs.params(), (1, 1, width)))
        self.q, self.k, self.v, self.proj = (Linear(width, width, kernel_init=xavier, dtype=dtype, rngs=rngs) for _ in range(4))
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
