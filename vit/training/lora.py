"""LoRA (arXiv 2106.09685): a frozen matrix W of the blocks, plus scale·A·B with trained A and B of low rank.

The factors stand beside their matrix (`blocks/0/attn/qkv/lora_a`, `lora_b`), the scale once (`lora_scale`). `merged` makes a
plain ViT's parameters of all that: for the loss, and for whoever reads a checkpoint's model, who need know nothing of LoRA.
"""

import re
import zlib

import jax
import jax.numpy as jnp

from vit.config import LoraConfig
from vit.models.vit import Params
from vit.training.optim import MATRICES

SCALE = "lora_scale"


def add(params: Params, config: LoraConfig, seed: int) -> Params:
    """The parameters with factors for every matrix of the blocks: A (Din, r) random, B (r, Dout) zero; rank 0 adds none.

    With B = 0 nothing is changed yet. A is uniform within ±1/√Din, as in the paper's code.
    """
    if not config.rank:
        return params
    key, factors = jax.random.key(seed), {SCALE: jnp.asarray(config.alpha / config.rank, jnp.float32)}
    for path, kernel in params.items():
        if re.search(MATRICES, path) and kernel.ndim == 2:
            inputs, outputs = kernel.shape
            its_own = jax.random.fold_in(key, zlib.crc32(path.encode()))
            a = jax.random.uniform(its_own, (inputs, config.rank), minval=-(inputs**-0.5), maxval=inputs**-0.5)
            factors |= {_factor(path, "a"): a, _factor(path, "b"): jnp.zeros((config.rank, outputs))}
    return {**params, **factors}


def merged(params: Params) -> Params:
    """A plain ViT's parameters: W + scale·A·B for W, and no factors. Without factors, what was given."""
    if SCALE not in params:
        return params
    out = {path: x for path, x in params.items() if not re.search(r"lora_(a|b|scale)$", path)}
    for path, kernel in out.items():
        if _factor(path, "a") in params:
            product = jnp.matmul(params[_factor(path, "a")], params[_factor(path, "b")], precision="highest")
            out[path] = kernel + params[SCALE] * product
    return out


_merge = jax.jit(merged)


def plain(params: Params) -> Params:
    """The same, compiled, for parameters that live on several devices or hosts."""
    return _merge(params) if SCALE in params else params


def _factor(path: str, which: str) -> str:
    return path.removesuffix("kernel") + f"lora_{which}"
