"""Pictures of single examples: the training batch, predictions. Pure functions of arrays."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from vit.config import Config
from vit.data.augment import to_pixels
from vit.data.batches import Batches
from vit.report.draw import BLUE, ORANGE, caption, grid, heading, save, show, text
from vit.training.state import example_keys


def train_batch(path: Any, batches: Batches, prepare: Any, config: Config, class_names: Sequence[str]) -> None:
    """The first images of the first training batch, at most 64, as the model sees them: augmented, with their labels."""
    batch = next(batches.starting_at(0))
    keys = example_keys(config.seed, jnp.zeros((), jnp.int32), jnp.asarray(batch["id"]))
    seen = jax.jit(prepare)({name: jnp.asarray(x) for name, x in batch.items()}, keys)
    images = np.asarray(to_pixels(seen["image"][:64], config.data))
    titles = [text(class_names[int(label)], 13) for label in batch["label"]]
    if "partner" in seen:
        others = (text(class_names[int(label)], 13) for label in seen["partner"])
        mixed = zip(titles, others, np.asarray(seen["share"]), strict=True)
        titles = [f"{own} {share:.0%}\n{other}" for own, other, share in mixed]
    figure, axes = grid(len(images), 8, 1.1, 2 if "partner" in seen else 1)
    size = 9 if "partner" not in seen and max(map(len, titles)) < 9 else 7
    for ax, image, title in zip(axes, images, titles, strict=False):
        show(ax, image)
        caption(ax, title, size=size)
    save(figure, path)


def predictions(
    path: Any,
    images: Sequence[UInt8[np.ndarray, "H W C"]],
    truth: Int[np.ndarray, "B"],
    probabilities: Float[np.ndarray, "B K"],
    class_names: Sequence[str],
    title: str,
    losses: Float[np.ndarray, "B"] | None = None,
) -> None:
    """Images with their true class, below it the predicted one (✓: the same) and its probability; and losses, if given."""
    figure, axes = grid(len(images), 6, 1.45, 2 if losses is None else 3, 0.6)
    best = probabilities.argmax(axis=1)
    for i, (ax, image) in enumerate(zip(axes, images, strict=False)):
        show(ax, image)
        own, guess, right = text(class_names[truth[i]], 17), text(class_names[best[i]], 13), best[i] == truth[i]
        sure = f"{probabilities[i, best[i]]:.0%}"
        lines = [own, f"✓ {sure}" if right else f"→ {guess} ({sure})"]
        lines += [] if losses is None else [f"loss {losses[i]:.2f}"]
        caption(ax, "\n".join(lines), BLUE if right else ORANGE)
    heading(figure, title)
    save(figure, path)
