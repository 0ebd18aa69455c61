"""`vit`: what one wants to know without training. `vit info NAME` tells of a model or a run."""

import sys
from pathlib import Path

from vit.errors import UserError, told_to_the_user

USAGE = "usage: vit info SIZE/PATCH [IMAGE_SIZE]   (as S/16)\n       vit info RUN_FOLDER"


def main() -> None:
    """The `vit` command."""
    with told_to_the_user():
        run(sys.argv[1:])


def run(args: list[str]) -> None:
    """Answer one command line. Raises `UserError` for one that it doesn't know."""
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
    elif args[0] != "info" or len(args) not in (2, 3):
        raise UserError(f"vit doesn't know {' '.join(args)!r}", "the command line", "vit --help shows what it knows")
    elif Path(args[1]).is_dir():
        print("\n".join(about_run(Path(args[1]))))
    else:
        print(about_model(args[1], args[2] if len(args) == 3 else "224"))


def about_model(name: str, size: str) -> str:
    """Parameters and operations of a variant with 1,000 classes."""
    import math

    from flax import nnx

    from vit.config import ViTConfig
    from vit.models.vit import ViT, flops

    if not size.isdecimal():
        raise UserError(f"{size!r} is not an image size", "the command line", "give pixels, as vit info S/16 384")
    config = ViTConfig.variant(name)
    shape = {"image_size": (int(size), int(size)), "channels": 3, "classes": 1000}
    model = nnx.eval_shape(lambda: ViT(config, **shape, rngs=nnx.Rngs(0)))
    count = sum(math.prod(x.shape) for _, x in nnx.to_flat_state(nnx.state(model)))
    sizes = f"width {config.width}, {config.depth} blocks, {config.heads} heads, MLP {config.mlp}"
    return f"{name} at {size}x{size}: {count:,} parameters, {flops(config, **shape) / 1e9:.2f} GFLOPs an image ({sizes})"


def about_run(workdir: Path) -> list[str]:
    """The run's checkpoints, each proven whole or named damaged."""
    from vit.training.checkpoint import Checkpoints, Damaged, best_step

    lines, scores = [], {}
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        for step in checkpoints.steps():
            try:
                meta = checkpoints.verify(step)
            except Damaged as damage:
                lines.append(f"step {step}: damaged, {damage}")
            else:
                scores |= meta["scores"]
                lines.append(f"step {step}: whole, {meta['data']['dataset']}, vit {meta['versions']['vit']}")
        best = best_step(scores, checkpoints.steps())
    if not lines:
        raise UserError("there is no checkpoint here", str(workdir), "give the folder of a run, as runs/digits-s0")
    return lines if best is None else [*lines, f"best by validation: step {best}"]
