"""Attention: the formula, its gradient, and which way of computing it a device and a length get.

Glossary for shapes: N tokens (Nq queries, Nk keys), d and dv widths of a head.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Num

Mask = Bool[Array, "..."] | Int[Array, "..."] | Float[Array, "..."]

LONG, AT_ONCE = 1024, 256  # tokens beyond which attention goes a few queries at a time, and how many
LONG_ON_GPU = 64  # beyond which cuDNN's kernel is quicker than XLA's (docs/decisions/0018)


def attend(
    q: Num[Array, "B h Nq d"], k: Num[Array, "B h Nk d"], v: Num[Array, "B h Nk dv"], mask: Mask | None = None
) -> Float[Array, "B h Nq dv"]:
    """The same as `attention`, in the way that suits the device and the number of keys.

    On a GPU beyond `LONG_ON_GPU` keys that is cuDNN's kernel (of 16-bit numbers, on Ampere and newer). Else up to `LONG` XLA
    has it all: the matrices of weights are small. Larger ones are never whole in memory: on a TPU the Pallas kernel that JAX
    ships goes through them, elsewhere, and with a mask, it is done a few queries at a time.
    """
    if mask is None and k.shape[-2] > LONG_ON_GPU and platform() == "gpu" and cudnn_takes(q, k, v):
        return gpu_attention(q, k, v)
    if k.shape[-2] <= LONG:
        return attention(q, k, v, mask)
    # XLA can't cut a kernel over devices that it isn't told of: evaluation on several goes without.
    told = "tensor" in jax.sharding.get_abstract_mesh().axis_names
    if mask is None and platform() == "tpu" and (jax.device_count() == 1 or told):
        return tpu_attention(q, k, v)
    return long_attention(q, k, v, mask)


def platform() -> str:
    """What the program being traced will run on, "cpu", "gpu" or "tpu": the mesh that is set, else what is here."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def cudnn_takes(q: Array, k: Array, v: Array) -> bool:
    """Whether cuDNN's attention is for such queries, keys and values, and for the GPU that is here."""
    device = jax.devices()[0]
    new = "cuda" in device.client.platform_version.lower() and float(device.compute_capability) >= 8
    alike = q.dtype == k.dtype == v.dtype and q.shape[-1] == k.shape[-1] == v.shape[-1]
    return new and alike and q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128


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
    q: Num[Array, "*batch Nq d"], k: Num[Array, "*batch Nk d"], v: Num[Array, "*batch Nk dv"], mask: Mask | None = None
) -> Float[Array, "*batch Nq dv"]:
    """softmax(QKᵀ/√d + mask)V; see `attention_weights` for the mask."""
    v = v if jnp.issubdtype(v.dtype, jnp.floating) else v.astype(jnp.float32)
    if mask is None:
        batch = jnp.broadcast_shapes(*(x.shape[:-2] for x in (q, k, v)))
        return _unmasked(*(jnp.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (q, k, v)))
    return jnp.matmul(attention_weights(q, k, mask).astype(v.dtype), v)


@jax.custom_vjp
def _unmasked(q: Array, k: Array, v: Array) -> Array:
    return _forward(q, k, v)[0]


def _forward(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    weights = attention_weights(q, k).astype(v.dtype)
    y = jnp.matmul(weights, v)
    return y, (q, k, v, weights, y)


def _backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array]:
    """The gradients by hand: a row's sum of weights · their gradients is its y · dy, of dv numbers instead of Nk.

    Left to itself JAX goes through the (Nq, Nk) matrices twice more (docs/decisions/0018).
    """
    q, k, v, weights, y = saved
    total = jnp.sum(y.astype(jnp.float32) * dy, axis=-1, keepdims=True)
    dscores = weights * (jnp.matmul(dy, v.mT, preferred_element_type=jnp.float32) - total)
    dscores = (dscores * q.shape[-1] ** -0.5).astype(q.dtype)
    dq, dk, dv = jnp.matmul(dscores, k), jnp.matmul(dscores.mT, q), jnp.matmul(weights.mT, dy)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


_unmasked.defvjp(_forward, _backward)


def long_attention(
    q: Num[Array, "*batch Nq d"], k: Num[Array, "*batch Nk d"], v: Num[Array, "*batch Nk dv"], mask: Mask | None = None
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


def gpu_attention(q: Num[Array, "B h Nq d"], k: Num[Array, "B h Nk d"], v: Num[Array, "B h Nk d"]) -> Float[Array, "B h Nq d"]:
    """The same as `attention`, by cuDNN's kernel. JAX refuses gradients of odd numbers of tokens: then one is added."""
    count, even = q.shape[2], q.shape[2] % 2 == k.shape[2] % 2 == 0
    real = [None if even else jnp.full(len(q), x.shape[2], jnp.int32) for x in (q, k)]
    q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, x.shape[2] % 2), (0, 0))).swapaxes(1, 2) for x in (q, k, v))
    y = jax.nn.dot_product_attention(q, k, v, query_seq_lengths=real[0], key_value_seq_lengths=real[1], implementation="cudnn")
    return y.swapaxes(1, 2)[:, :, :count]


def tpu_attention(q: Num[Array, "B h Nq d"], k: Num[Array, "B h Nk d"], v: Num[Array, "B h Nk d"]) -> Float[Array, "B h Nq d"]:
    """The same as `attention`, by the flash attention that JAX ships for TPUs (arXiv 2205.14135).

    Its blocks are of 128 tokens: what is added at the end belongs to another segment, which no real token attends to. On
    several devices heads go over the mesh's last axis, `tensor`, examples over the others.
    """
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    def padded(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % 128), (0, 0)))

    def kernel(q: Array, k: Array, v: Array) -> Array:
        real = [(jnp.arange(n + -n % 128) < n).astype(jnp.int32) for n in (q.shape[2], k.shape[2])]
        segments = flash.SegmentIds(*(jnp.broadcast_to(x, (len(q), len(x))) for x in real))
        y = flash.flash_attention(*map(padded, (q, k, v)), segment_ids=segments, sm_scale=q.shape[-1] ** -0.5)
        return y[:, :, : q.shape[2]]

    mesh = jax.sharding.get_abstract_mesh()
    if "tensor" not in mesh.axis_names or mesh.are_all_axes_manual:
        return kernel(q, k, v)
    spec = PartitionSpec(mesh.axis_names[:-1], "tensor")
    return jax.shard_map(kernel, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)(q, k, v)


def heads_are_shared() -> bool:
    """Whether the mesh that is set gives several devices to each example: its axis `tensor` goes over the heads."""
    return jax.sharding.get_abstract_mesh().shape.get("tensor", 1) > 1


def spread(x: Array, *axes: str | None) -> Array:
    """The same array, of which is said over which axes of the mesh that is set it is cut."""
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))
