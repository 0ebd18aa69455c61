"""What devices can do by their makers' data sheets, and what memory a process has taken."""

import sys
from typing import Any, NamedTuple

import jax


class Chip(NamedTuple):
    """Of one device: FLOP/s of 16-bit matrix products, bytes of memory, bytes/s of memory and of links to other devices."""

    flops: float
    memory: float
    bandwidth: float
    links: float


GIB = 2**30
# By `device_kind`: cloud.google.com/tpu/docs and NVIDIA's data sheets, without sparsity. Links: all of a chip's, in one
# direction.
CHIPS = {
    "TPU v4": Chip(275e12, 32 * GIB, 1.23e12, 300e9),
    "TPU v5 lite": Chip(197e12, 16 * GIB, 0.82e12, 200e9),
    "TPU v5": Chip(459e12, 95 * GIB, 2.77e12, 600e9),
    "TPU v6 lite": Chip(918e12, 32 * GIB, 1.64e12, 448e9),
    "Tesla T4": Chip(65e12, 16e9, 0.32e12, 16e9),
    "NVIDIA L4": Chip(121e12, 24e9, 0.30e12, 32e9),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 40e9, 1.56e12, 300e9),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80e9, 2.04e12, 300e9),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80e9, 3.35e12, 450e9),
    "NVIDIA H200": Chip(989e12, 141e9, 4.80e12, 450e9),
}


def peak_flops(devices: Any, matmul_gflops: float) -> float:
    """FLOP/s of these devices together, at the most; 0 for an unknown kind. On a CPU what a matmul was measured to do."""
    if devices[0].platform == "cpu":
        return 1e9 * matmul_gflops * len({device.process_index for device in devices})
    kind = devices[0].device_kind
    return len(devices) * CHIPS[kind].flops if kind in CHIPS else 0.0


def peak_memory() -> int:
    """Bytes that were in use at the most: of this process's fullest device, or on a CPU of the process."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        return max(int(x["peak_bytes_in_use"]) for x in stats if x)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
