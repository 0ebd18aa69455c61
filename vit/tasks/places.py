"""From logits on a grid to class ids at an image's own size: whole images, padded ones, and sliding windows.

Images of one batch may have many sizes: they share a canvas, in whose upper left corner each lies. B batch, H W canvas.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num, UInt8

AT_ONCE = 2**25  # logits of the canvas that are held at a time, beyond which it is filled in bands


def resize(logits: Float[Array, "B h w K"], size: tuple[int, int]) -> Float[Array, "B H W K"]:
    """Bilinear, by half pixels, as PyTorch's `interpolate` without aligned corners."""
    if logits.shape[1:3] == tuple(size):
        return logits
    whole = jnp.asarray(size, jnp.float32)
    rows, columns = (
        _weights(n, whole[i], whole[i], size[i], m) for i, (n, m) in enumerate(zip(size, logits.shape[1:3], strict=True))
    )
    return jnp.einsum("xw,bywk->byxk", columns, jnp.einsum("yh,bhwk->bywk", rows, logits))


def _weights(
    count: int, length: Num[Array, ""], content: Num[Array, ""], shown: int, cells: int, first: int | Array = 0
) -> Float[Array, "count cells"]:
    """The matrix of bilinear interpolation along an axis: `count` pixels, from `first` on, of an image of `length` pixels.

    Its `content` pixels of the `shown` ones that the model saw became `cells` logits.
    """
    place = (first + jnp.arange(count) + 0.5) * (content / length)  # in what the model saw
    place = jnp.clip(place * (cells / shown) - 0.5, 0, jnp.maximum(content * (cells / shown) - 0.5, 0))
    place = jnp.minimum(place, cells - 1)
    return jnp.maximum(0, 1 - jnp.abs(place[:, None] - jnp.arange(cells)))


def ids(
    logits: Float[Array, "B h w K"],
    size: Int[Array, "B 2"],
    content: Int[Array, "B 2"],
    shown: tuple[int, int],
    canvas: tuple[int, int],
) -> UInt8[Array, "B H W"]:
    """The likeliest class of every pixel of a canvas; beyond an image's own `size` they mean nothing.

    Args:
      logits: of what the model saw.
      size: height and width of each image as it is.
      content: height and width that it took of the `shown` ones of the model's input.
      canvas: height and width of the result.
    """
    (H, W), K = canvas, logits.shape[-1]
    band = max(1, min(H, AT_ONCE // max(1, W * K)))

    def one(logits: Float[Array, "h w K"], size: Int[Array, "2"], content: Int[Array, "2"]) -> UInt8[Array, "H W"]:
        h, w = logits.shape[:2]
        columns = _weights(W, size[1], content[1], shown[1], w)

        def rows(first: Int[Array, ""]) -> UInt8[Array, "b W"]:
            weights = _weights(band, size[0], content[0], shown[0], h, first)
            across = jnp.einsum("yh,hwk->ywk", weights, logits)
            return jnp.einsum("xw,ywk->yxk", columns, across).argmax(axis=-1).astype(jnp.uint8)

        if band == H:
            return rows(jnp.zeros((), jnp.int32))
        bands = jax.lax.map(rows, band * jnp.arange(-(-H // band)))
        return bands.reshape(-1, W)[:H]

    return jax.lax.map(lambda each: one(*each), (logits, size, content))


def enlarged(
    logits: Float[Array, "h w K"],
    size: Int[Array, "2"],
    content: Int[Array, "2"],
    shown: tuple[int, int],
    canvas: tuple[int, int],
) -> Float[Array, "H W K"]:
    """One image's logits on a canvas; arguments as of `ids`."""
    rows, columns = (_weights(canvas[i], size[i], content[i], shown[i], logits.shape[i]) for i in range(2))
    return jnp.einsum("xw,ywk->yxk", columns, jnp.einsum("yh,hwk->ywk", rows, logits))


def sliding(
    model: Callable[[Float[Array, "n h w C"]], Float[Array, "n a b K"]],
    images: Float[Array, "B H W C"],
    size: Int[Array, "B 2"],
    window: tuple[int, int],
    overlap: float,
    at_once: int = 4,
) -> UInt8[Array, "B H W"]:
    """The likeliest class of every pixel by the mean of the logits of all windows that see it.

    Windows of an image are evenly spread over it, and share at least `overlap` of their side with their neighbours. The canvas
    is at least as large as a window. `at_once` windows go through the model together.
    """
    h, w = window
    H, W = images.shape[1:3]
    steps = [max(1, int(side * (1 - overlap))) for side in window]
    counts = [1 + -(-(n - side) // step) for n, side, step in zip((H, W), window, steps, strict=True)]

    def places(count: int, length: Int[Array, ""], side: int, step: int) -> tuple[Int[Array, "count"], Array]:
        spare = jnp.maximum(length - side, 0)
        needed = 1 + -(-spare // step)
        i = jnp.arange(count)
        return jnp.round(i * spare / jnp.maximum(needed - 1, 1)).astype(jnp.int32).clip(0, spare), i < needed

    def one(image: Float[Array, "H W C"], size: Int[Array, "2"]) -> UInt8[Array, "H W"]:
        (ys, used_y), (xs, used_x) = (places(*each) for each in zip(counts, size, window, steps, strict=True))
        corners = jnp.stack(jnp.meshgrid(ys, xs, indexing="ij"), axis=-1).reshape(-1, 2)
        used = (used_y[:, None] & used_x[None]).reshape(-1)
        spare = -len(used) % at_once
        corners, used = jnp.pad(corners, ((0, spare), (0, 0))), jnp.pad(used, (0, spare))
        groups = corners.reshape(-1, at_once, 2), used.reshape(-1, at_once)
        kinds = jax.eval_shape(model, jax.ShapeDtypeStruct((at_once, h, w, image.shape[-1]), image.dtype)).shape[-1]

        def add(sums: tuple[Array, Array], group: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            corners, used = group
            views = jax.vmap(lambda at: jax.lax.dynamic_slice(image, (*at, 0), (h, w, image.shape[-1])))(corners)
            total, seen = sums
            for logits, at, weight in zip(resize(model(views), window), corners, used.astype(jnp.float32), strict=True):
                part = jax.lax.dynamic_slice(total, (*at, 0), logits.shape)
                total = jax.lax.dynamic_update_slice(total, part + weight * logits, (*at, 0))
                part = jax.lax.dynamic_slice(seen, tuple(at), window)
                seen = jax.lax.dynamic_update_slice(seen, part + weight, tuple(at))
            return (total, seen), None

        zero = jnp.zeros((H, W, kinds)), jnp.zeros((H, W))
        (total, seen), _ = jax.lax.scan(add, zero, groups)
        return (total / jnp.maximum(seen, 1)[..., None]).argmax(axis=-1).astype(jnp.uint8)

    return jax.lax.map(lambda each: one(*each), (images, size))
