"""Where arrays live: one mesh over all devices, parameters on each, batches split.

A jitted function whose arguments carry these shardings runs unchanged on one CPU, several GPUs and a TPU pod: XLA adds
the all-reduce of the gradients (`jax.jit` with NamedSharding is what `pmap` was for).
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit.errors import UserError


def make_mesh() -> Mesh:
    """All devices along one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def check_batch_size(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raise `UserError` if the devices can't share each microbatch evenly."""
    if batch_size % (mesh.size * accumulate):
        what = f"--batch-size {batch_size} can't be shared by {mesh.size} devices"
        fix = f"give a multiple of {mesh.size * accumulate} (devices × --accumulate)"
        raise UserError(what, "the command line", fix)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """This process's part of a batch → arrays over the whole mesh, split along the first axis."""
    split = NamedSharding(mesh, PartitionSpec("data"))
    return {name: jax.make_array_from_process_local_data(split, x) for name, x in batch.items()}
