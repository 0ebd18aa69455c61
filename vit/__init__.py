"""Vision Transformers in JAX: train, evaluate, resume, and use them from Python.

`vit.create("S/16", classes=10)` builds a model, `vit.load("runs/digits-s0")` gives a trained one that predicts, and
`vit.attention` is the formula itself. Names load on first use, so that the programs can check their flags before they import
jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vit.config import ViTConfig as ViTConfig
    from vit.deploy.predict import load as load
    from vit.models.layers import attention as attention
    from vit.models.vit import ViT as ViT
    from vit.models.vit import create as create

_HOMES = {
    "ViT": "vit.models.vit",
    "ViTConfig": "vit.config",
    "attention": "vit.models.layers",
    "create": "vit.models.vit",
    "load": "vit.deploy.predict",
}
__all__ = ["ViT", "ViTConfig", "attention", "create", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
