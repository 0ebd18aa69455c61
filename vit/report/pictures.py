"""Pictures of single examples: the training batch, predictions. Pure functions of arrays."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure

from vit.config import Config
from vit.data.augment import to_pixels
from vit.data.batches import Batches
from vit.report.draw import BLUE, INK, ORANGE, PALE, caption, grid, heading, save, show, text
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
    figure, places = grid(len(images), 8, 1.1, 2 if "partner" in seen else 1)
    size = 9 if "partner" not in seen and max(map(len, titles)) < 9 else 7
    for place, image, title in zip(places, images, titles, strict=False):
        show(place, image)
        caption(place, title, size=size)
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
    figure, places = grid(len(images), 6, 1.45, 2 if losses is None else 3, 0.6)
    best = probabilities.argmax(axis=1)
    for i, (place, image) in enumerate(zip(places, images, strict=False)):
        show(place, image)
        own, guess, right = text(class_names[truth[i]], 17), text(class_names[best[i]], 13), best[i] == truth[i]
        sure = f"{probabilities[i, best[i]]:.0%}"
        lines = [own, f"✓ {sure}" if right else f"→ {guess} ({sure})"]
        lines += [] if losses is None else [f"loss {losses[i]:.2f}"]
        caption(place, "\n".join(lines), BLUE if right else ORANGE)
    heading(figure, title)
    save(figure, path)


def annotated(path: Any, image: UInt8[np.ndarray, "H W 3"], top: Sequence[tuple[str, float]], name: str) -> None:
    """An image in its own shape, and beside it its likeliest classes with their probabilities."""
    H, W = image.shape[:2]
    side = min(4.0, 4.0 * W / H), min(4.0, 4.0 * H / W)  # inches, width and height
    whole = side[0] + 3.2, max(side[1], 1.7) + 0.5
    figure = Figure(whole)
    ax = figure.add_axes((0.1 / whole[0], 0.1 / whole[1], side[0] / whole[0], side[1] / whole[1]))
    ax.imshow(image, interpolation="antialiased" if max(H, W) >= 64 else "nearest")
    ax.axis("off")
    bars = figure.add_axes(((side[0] + 0.3) / whole[0], 0.1 / whole[1], 2.8 / whole[0], max(side[1], 1.7) / whole[1]))
    bars.set(xlim=(0, 1), ylim=(max(5, len(top)) - 0.5, -0.5))
    bars.axis("off")
    for i, (label, share) in enumerate(top):
        bars.barh(i + 0.18, 1, height=0.3, color=PALE)
        bars.barh(i + 0.18, share, height=0.3, color=BLUE)
        bars.text(0, i - 0.02, text(label, 30), fontsize=9, color=INK, va="bottom")
        bars.text(1, i - 0.02, f"{share:.1%}", fontsize=9, color=INK, va="bottom", ha="right")
    figure.suptitle(text(name, int(whole[0] * 11)), fontsize=9, color=INK, y=1 - 0.1 / whole[1], va="top")
    save(figure, path)
