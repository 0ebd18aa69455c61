"""Where arrays live: one mesh over all devices, batches split, parameters on each device or spread over them.

A jitted function whose arguments carry these shardings runs unchanged on one CPU, several GPUs and a TPU pod: XLA adds
the all-reduce of the gradients, and with FSDP the gathering of parameters (why not `pmap`: docs/decisions/0006).
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit.errors import UserError


def make_mesh(devices: list[Any] | None = None) -> Mesh:
    """All devices (or those given) along one axis, `data`, host by host: so the hosts' parts in order are the batch."""
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def check_batch_size(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raise `UserError` if the devices can't share each microbatch evenly."""
    if batch_size % (mesh.size * accumulate):
        what = f"--batch-size {batch_size} can't be shared by {mesh.size} devices"
        what += f" in {accumulate} microbatches" if accumulate > 1 else ""
        fix = f"give a multiple of {mesh.size * accumulate} (devices × --accumulate)"
        raise UserError(what, "the command line", fix)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def fsdp_spec(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """FSDP (ZeRO-3, arXiv 1910.02054): matrices are cut along their longest side that the devices divide; vectors are not."""
    axes = [i for i, n in enumerate(shape) if n % mesh.size == 0 and n > 1]
    if len(shape) < 2 or not axes:
        return PartitionSpec()
    cut = max(axes, key=lambda i: shape[i])
    return PartitionSpec(*("data" if i == cut else None for i in range(len(shape))))


def state_shardings(shapes: Any, mesh: Mesh, fsdp: bool) -> Any:
    """The shapes of a state → the same tree of shapes that know where they live."""

    def located(x: Any) -> jax.ShapeDtypeStruct:
        spec = fsdp_spec(x.shape, mesh) if fsdp else PartitionSpec()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(located, shapes)


def distribute(tree: Any, like: Any) -> Any:
    """Arrays that every process has in whole → arrays that live where those of `like` do."""

    def put(x: Any, to: Any) -> jax.Array:
        host = np.asarray(x)
        return jax.make_array_from_callback(to.shape, to.sharding, lambda part: host[part])

    return jax.tree.map(put, tree, like)


def place(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """This process's part of a batch → arrays over the whole mesh, split along the first axis."""
    split = NamedSharding(mesh, PartitionSpec("data"))
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
