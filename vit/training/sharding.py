"""Where arrays live: one mesh over all devices, batches split, parameters on each device or spread over them.

A jitted function whose arguments carry these shardings runs unchanged on one CPU, several GPUs and a TPU pod: XLA adds
the all-reduce of the gradients, and with FSDP or tensor parallelism what else must travel (why not `pmap`:
docs/decisions/0006).
"""

import collections
import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit.errors import UserError
from vit.models.layers import prime_factors

T = TypeVar("T")


def make_mesh(devices: list[Any] | None = None, tensor: int = 1) -> Mesh:
    """All devices (or those given) as rows of `tensor` devices each: rows share the batch, the devices of a row each example.

    The last axis is called `tensor`; those of the rows, `data0`, `data1` and so on, are as long as the prime factors of their
    number, so that each factor may cut another side. Rows go host by host, so that the hosts' parts in order are the batch.
    Raises `UserError` if a host's devices don't make whole rows.
    """
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    here = collections.Counter(device.process_index for device in devices)
    if odd := [count for count in here.values() if count % tensor]:
        what = f"--tensor {tensor} can't be made of the {odd[0]} devices of a host"
        raise UserError(what, "the command line", "give a number that divides them")
    lengths = [*prime_factors(len(devices) // tensor), tensor]
    names = [*(f"data{i}" for i in range(len(lengths) - 1)), "tensor"]
    return Mesh(np.array(devices).reshape(lengths), names, axis_types=(AxisType.Auto,) * len(names))


def rows_of(mesh: Mesh) -> int:
    """How many rows of devices share the batch."""
    return mesh.size // mesh.shape["tensor"]


def by_example(mesh: Mesh) -> NamedSharding:
    """Arrays of a batch: the rows of devices share the first axis."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names[:-1]))


def check_batch_size(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raise `UserError` if the devices can't share each microbatch evenly."""
    rows = rows_of(mesh)
    if batch_size % (rows * accumulate):
        wide = f" rows of {mesh.size // rows}" if rows < mesh.size else ""
        what = f"--batch-size {batch_size} can't be shared by {rows}{wide} devices"
        what += f" in {accumulate} microbatches" if accumulate > 1 else ""
        fix = f"give a multiple of {rows * accumulate} (devices{' / --tensor' if wide else ''} × --accumulate)"
        raise UserError(what, "the command line", fix)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


# Which side of a block's matrix the devices of a row share, after Megatron-LM (arXiv 1909.08053): the hidden values of the MLP
# and the heads that the last matrix of attention reads. Queries, keys and values of a head aren't side by side in their matrix:
# it is cut by rows, and put together by heads where it is used (`SelfAttention`).
TENSOR = {r"attn/qkv/kernel$": 0, r"attn/proj/kernel$": 0, r"mlp/fc1/(kernel|bias)$": -1, r"mlp/fc2/kernel$": 0}


def spec(path: str, shape: tuple[int, ...], mesh: Mesh, fsdp: bool) -> PartitionSpec:
    """How a parameter, or what the optimiser keeps of it, is cut.

    Over `tensor` by the table above. With `fsdp` (ZeRO-3, arXiv 1910.02054) over the rows too: every matrix along its longest
    side that is still whole and that their number divides; without such a side, each prime factor of the number along the
    longest that it divides. Vectors are not cut.
    """
    cut: list[tuple[str, ...]] = [()] * len(shape)
    left, rows = list(shape), rows_of(mesh)
    side = next((side for pattern, side in TENSOR.items() if re.search(rf"(^|/)blocks/.*{pattern}", path)), None)
    if mesh.shape["tensor"] > 1 and side is not None and shape and shape[side] % mesh.shape["tensor"] == 0:
        cut[side] = ("tensor",)
    sides = sorted((i for i in range(len(shape)) if not cut[i]), key=lambda i: (shape[i] % rows > 0, -shape[i]))
    for axis in mesh.axis_names[:-1] if fsdp and len(shape) > 1 else ():
        at = next((i for i in sides if left[i] % mesh.shape[axis] == 0), None)
        if at is not None:
            cut[at], left[at] = (*cut[at], axis), left[at] // mesh.shape[axis]
    return PartitionSpec(*(axes or None for axes in cut)) if any(cut) else PartitionSpec()


def state_shardings(shapes: Any, mesh: Mesh, fsdp: bool) -> Any:
    """The shapes of a state → the same tree of shapes that know where they live."""

    def located(keys: tuple[Any, ...], x: Any) -> jax.ShapeDtypeStruct:
        path = next((key.key for key in reversed(keys) if isinstance(key, jax.tree_util.DictKey)), "")
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec(path, x.shape, mesh, fsdp)))

    return jax.tree_util.tree_map_with_path(located, shapes)


def on(like: Any, function: Callable[..., T]) -> Callable[..., T]:
    """The function; while it is traced, layers that ask for the mesh (`vit.models.attention`) see that of `like`, if given."""
    if not like:
        return function
    mesh = jax.tree.leaves(like)[0].sharding.mesh

    @functools.wraps(function)
    def inside(*args: Any, **named: Any) -> T:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args, **named)

    return inside


def distribute(tree: Any, like: Any) -> Any:
    """Arrays that every process has in whole → arrays that live where those of `like` do."""

    def put(x: Any, to: Any) -> jax.Array:
        host = np.asarray(x)
        return jax.make_array_from_callback(to.shape, to.sharding, lambda part: host[part])

    return jax.tree.map(put, tree, like)


def place(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """This process's part of a batch → arrays over the whole mesh, split along the first axis."""
    split = by_example(mesh)
    if jax.process_count() == 1:  # one call for all arrays: two thirds of the time
        return jax.device_put(batch, split)
    return {name: jax.make_array_from_process_local_data(split, x) for name, x in batch.items()}


@functools.cache
def _everywhere(function: Callable[[jax.Array], jax.Array], mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(function, out_shardings=replicated(mesh))


def collect(tree: Any) -> Any:
    """NumPy copies of whole arrays, on every process."""

    def whole(x: jax.Array) -> np.ndarray:
        if not (x.is_fully_addressable or x.is_fully_replicated):
            x = _everywhere(jnp.copy, cast(NamedSharding, x.sharding).mesh)(x)
        return np.array(x)

    return jax.tree.map(whole, tree)


def anywhere(flag: bool, mesh: Mesh) -> Any:
    """Whether the flag is set in any process. With several: an array to be looked at later; all must ask together."""
    if jax.process_count() == 1:
        return flag
    flags = place({"flag": np.full(len(mesh.local_devices), flag)}, mesh)["flag"]
    return _everywhere(jnp.any, mesh)(flags)
