"""Where a patch is: fixed and learned positions that are added, and rotary ones that turn queries and keys."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

EVA_GRID = 16  # EVA-02 stretches every grid over the 16x16 of its pre-training at 224 pixels


def sincos_positions(h: int, w: int, width: int) -> Float[np.ndarray, "1 N D"]:
    """Fixed 2-D sin-cos positions of an h×w grid (MoCo v3, arXiv 2104.02057). `width` is a multiple of 4."""
    omega = 1 / 10_000 ** (np.arange(width // 4) / max(1, width // 4 - 1))
    y, x = (grid.reshape(-1, 1) * omega for grid in np.mgrid[:h, :w])
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1, dtype=np.float32)[None]


def resample_positions(
    positions: Float[Array, "1 N D"], old: tuple[int, int], new: tuple[int, int], method: str = "cubic"
) -> Float[Array, "1 M D"]:
    """Learned positions of an old grid at a new one.

    `method` is "cubic" or "linear" with antialiasing, as PyTorch has them with antialias=True, or "cubic_torch", PyTorch's
    without, whose kernel is another one.
    """
    if old == new:
        return positions
    grid = positions.reshape(1, *old, -1)
    if method == "cubic_torch":
        rows, columns = (jnp.asarray(_cubic_torch(*sizes), grid.dtype) for sizes in zip(old, new, strict=True))
        resized = jnp.einsum("ih,jw,bhwd->bijd", rows, columns, grid)
    else:
        resized = jax.image.resize(grid, (1, *new, grid.shape[-1]), method, antialias=True)
    return resized.reshape(1, new[0] * new[1], -1)


def _cubic_torch(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """The matrix of PyTorch's bicubic interpolation along one axis: a = -0.75, the border repeated."""
    a, matrix = -0.75, np.zeros((new, old))
    source = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(source).astype(int)
    for tap in range(-1, 3):
        x = np.abs(source - first - tap)
        near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        np.add.at(matrix, (np.arange(new), np.clip(first + tap, 0, old - 1)), np.where(x <= 1, near, far))
    return matrix


def rotation(kind: str, grid: tuple[int, int], prefix: int, d: int) -> Callable[[Float[Array, "*b N d"]], Array]:
    """What turns queries and keys by the places of their patches; `prefix` tokens before the patches stay as they are.

    Rotary positions in two dimensions (arXiv 2104.09864): half of the values turn with the row, half with the column. "dinov3"
    measures a grid from -1 to 1 and pairs values half a head apart; "eva" from 0 to 16 and pairs neighbours.
    """
    if kind == "dinov3":
        places = [2 * (np.arange(n) + 0.5) / n - 1 for n in grid]
        frequencies = 2 * np.pi / 100 ** (np.arange(d // 4) / (d // 4))
    else:
        places = [np.arange(n) / n * EVA_GRID for n in grid]
        frequencies = 1 / 10_000 ** (np.arange(d // 4) / (d // 4))
    y, x = (place.reshape(-1, 1) * frequencies for place in np.meshgrid(*places, indexing="ij"))
    angles = np.concatenate([y, x], axis=1)
    angles = np.concatenate([angles, angles], axis=1) if kind == "dinov3" else np.repeat(angles, 2, axis=1)
    angles = np.concatenate([np.zeros((prefix, d)), angles])
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def rotate(z: Float[Array, "*b N d"]) -> Array:
        if kind == "dinov3":
            turned = jnp.concatenate([-z[..., d // 2 :], z[..., : d // 2]], axis=-1)
        else:
            turned = jnp.stack([-z[..., 1::2], z[..., ::2]], axis=-1).reshape(z.shape)
        return (z * cos + turned * sin).astype(z.dtype)

    return rotate
