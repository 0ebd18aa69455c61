"""Where a classifier looks: attention rollout, and single blocks' attention, for the vector that it classifies by."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from vit.models.vit import merge
from vit.report.draw import BLUE, INK, ORANGE, caption, grid, heading, heat, save, show, text
from vit.training.sharding import distribute, replicated

Seen = dict[str, np.ndarray]  # image, label, guess, rollout and last, each of some images


def rollout(attention: Sequence[Float[Array, "B h N N"]]) -> Float[Array, "B N N"]:
    """Attention rollout A_L…A_1 (arXiv 2005.00928): row i tells how much of each input token is in output token i.

    Each A is half the heads' mean, half the identity (the residual connection), its rows scaled to sum to 1.
    """
    identity = jnp.eye(attention[0].shape[-1])
    total = jnp.broadcast_to(identity, (attention[0].shape[0], *identity.shape))
    for weights in attention:
        mixed = (weights.mean(axis=1) + identity) / 2
        total = (mixed / mixed.sum(axis=-1, keepdims=True)) @ total
    return total


def pooled(pool: str, tokens: Float[Array, "B N N"], out: dict[str, Any]) -> Float[Array, "B h w"]:
    """What of each patch is in the pooled vector, if `tokens` tells what of each token is in each token.

    Args:
      pool: the model's: the class token's row, the mean over the patches' rows, the mean of both, or the patches' rows
        weighted as `pool_attention` is.
      tokens: the rollout, or one block's attention.
      out: what the model returned with attention=True.
    """
    B, h, w = out["patches"].shape[:3]
    first = tokens.shape[1] - h * w  # behind class token and registers
    token, patches = tokens[:, 0, first:], tokens[:, first:, first:]
    if pool == "token":
        row = token
    elif pool == "mean":
        row = patches.mean(axis=1)
    elif pool == "token_mean":
        row = (token + patches.mean(axis=1)) / 2
    else:
        row = jnp.einsum("bm,bmn->bn", out["pool_attention"].mean(axis=1), patches)
    return row.reshape(B, h, w)


def heads(pool: str, out: dict[str, Any], block: int) -> Float[Array, "B heads h w"]:
    """What of each patch each head of a block takes for the pooled vector."""
    return jax.vmap(lambda tokens: pooled(pool, tokens, out), in_axes=1, out_axes=1)(out["attention"][block])


def maps(pool: str, out: dict[str, Any]) -> tuple[Float[Array, "B h w"], Float[Array, "B h w"]]:
    """Of each image's patches: the rollout, and the heads' mean of the last block's attention."""
    return pooled(pool, rollout(out["attention"]), out), pooled(pool, out["attention"][-1].mean(axis=1), out)


def watch(task: Any, prepare: Any, source: Any, mesh: Mesh, count: int = 8) -> Callable[[dict[str, Any]], Seen]:
    """Parameters → where a classifier looks on a source's first images; all processes of a run must ask together."""
    examples = [source[i] for i in range(min(count, len(source)))]
    batch = {name: np.stack([e[name] for e in examples]) for name in ("image", "label", "id")}
    everywhere = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), batch)
    placed = distribute(batch, everywhere)

    def forward(params: dict[str, Any], batch: dict[str, Any]) -> tuple[Array, Array, Array]:
        logits, out = merge(task.graph, params)(prepare(batch, None)["image"], attention=True)
        return logits.argmax(axis=1), *maps(task.model.pool, out)

    compiled = jax.jit(forward, out_shardings=replicated(mesh))

    def look(params: dict[str, Any]) -> Seen:
        guess, everything, last = jax.device_get(compiled(params, placed))
        return {"image": batch["image"], "label": batch["label"], "guess": guess, "rollout": everything, "last": last}

    return look


def picture(path: Any, seen: Seen, class_names: Sequence[str]) -> None:
    """Of each image: itself with its true and predicted class, the rollout over it, the last block's attention."""
    images, truth, predicted, everything, last = (seen[name] for name in ("image", "label", "guess", "rollout", "last"))
    figure, places = grid(3 * len(images), 6 if len(images) > 1 else 3, 1.35, 2, 0.7)
    h, w = everything.shape[1:]
    for i, image in enumerate(images):
        whole, over, alone = places[3 * i : 3 * i + 3]
        right = truth[i] == predicted[i]
        names = text(class_names[truth[i]], 18), text(class_names[predicted[i]], 16)
        show(whole, image)
        caption(whole, f"{names[0]}\n→ {names[1]}", BLUE if right else ORANGE)
        show(over, image if image.shape[-1] == 1 else image.mean(axis=-1, keepdims=True))
        heat(over, everything[i], image, 0.6)
        caption(over, "rollout")
        heat(alone, last[i], image, 1.0)
        caption(alone, "last block")
    words = f"Attention for the pooled vector, {h}×{w} patches, each map from its least (dark) to its most (bright): "
    heading(figure, words + "rollout through all blocks over the image, and the last block's mean over heads")
    save(figure, path)


def looks(
    path: Any,
    view: UInt8[np.ndarray, "H W C"],
    best: tuple[str, float],
    everything: Float[np.ndarray, "h w"],
    each: Float[np.ndarray, "heads h w"],
    block: int,
) -> None:
    """What the model was shown, with its best class and the probability; over it the rollout, and each head of a block."""
    count = 2 + len(each)
    # Whole rows, of up to seven.
    columns = min((-(-count // rows) for rows in range(1, count + 1) if -(-count // rows) <= 7), default=7, key=lambda n: -n)
    figure, places = grid(count, columns, 1.9, 2, 0.4)
    show(places[0], view)
    caption(places[0], f"{text(best[0], 22)}\n{best[1]:.1%}", INK)
    titles = ["rollout", *(f"block {block}, head {i}" for i in range(len(each)))]
    for place, values, title in zip(places[1:], [everything, *each], titles, strict=True):
        show(place, view if view.shape[-1] == 1 else view.mean(axis=-1, keepdims=True))
        heat(place, values, view, 0.6)
        caption(place, title)
    h, w = everything.shape
    words = f"Where it looks for “{best[0]}”, {h}×{w} patches, each map from its least (dark) to its most (bright)"
    heading(figure, words)
    save(figure, path)
