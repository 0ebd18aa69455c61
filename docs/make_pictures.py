"""Draws the pictures of docs/augmentation.md: `uv run docs/make_pictures.py`."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_images

from vit.config import AugmentConfig, TfdsData
from vit.data.augment import make_prepare, to_pixels
from vit.data.randaugment import OPERATIONS, apply, argument

PICTURES = Path(__file__).parent / "pictures"
DATA = TfdsData(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
SIDE = 96


def samples() -> np.ndarray:
    """scikit-learn's temple and flower, in turn, as squares."""
    squares = []
    for picture in load_sample_images().images:
        height, width, _ = picture.shape
        left = (width - height) // 2
        square = Image.fromarray(picture[:, left : left + height])
        squares.append(np.asarray(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS)))
    return np.stack(squares * 4)


def draw(name: str, images: np.ndarray, titles: list[str]) -> None:
    """A grid of eight columns."""
    rows = -(-len(images) // 8)
    figure = Figure((8 * 1.1, rows * 1.3), layout="constrained")
    for ax, image, title in zip(figure.subplots(rows, 8, squeeze=False).flat, images, titles, strict=False):
        ax.imshow(image)
        ax.set_title(title, fontsize=8)
    for ax in figure.axes:
        ax.axis("off")
    FigureCanvasAgg(figure).print_png(PICTURES / f"{name}.png")


def main() -> None:
    """One picture for each operation of `AugmentConfig`."""
    PICTURES.mkdir(exist_ok=True)
    pixels = samples()
    batch = {"image": jnp.asarray(pixels), "label": jnp.arange(8) % 2}
    keys = jax.random.split(jax.random.key(4), 8)
    shown = {
        "affine": AugmentConfig(rotate=12, zoom=0.1, shear=0.15, shift=0.08),
        "crop": AugmentConfig(crop=12),
        "flip": AugmentConfig(flip=True),
        "randaugment": AugmentConfig(randaugment=2, magnitude=9),
        "erase": AugmentConfig(erase=1 - 1e-6),
        "mixup": AugmentConfig(mixup=0.8),
        "cutmix": AugmentConfig(cutmix=1.0),
    }
    for name, config in shown.items():
        seen = make_prepare(DATA, config)(batch, keys)
        titles = [f"{'own ' + format(x, '.0%') if 'share' in seen else ''}" for x in np.asarray(seen.get("share", np.zeros(8)))]
        draw(name, np.asarray(to_pixels(seen["image"], DATA)), titles)

    fill = jnp.round(255 * jnp.asarray(DATA.mean))
    done = [
        apply(
            jnp.asarray(pixels[0], jnp.float32), jnp.asarray(i), argument(jnp.asarray(i), jnp.asarray(0.9), jnp.ones(())), fill
        )
        for i in range(len(OPERATIONS))
    ]
    draw("operations", np.stack([pixels[0], *done]).astype(np.uint8), ["as it is", *OPERATIONS])

    normal = np.asarray(make_prepare(DATA, AugmentConfig())(batch, None)["image"])
    figure = Figure((8.8, 2.2), layout="constrained")
    for ax, values, title in zip(figure.subplots(1, 2), (pixels / 255, normal), ("pixels / 255", "normalised"), strict=True):
        for channel, colour in enumerate(("tab:red", "tab:green", "tab:blue")):
            ax.hist(values[:2, ..., channel].ravel(), 60, histtype="step", color=colour)
        ax.set_title(title, fontsize=9)
    FigureCanvasAgg(figure).print_png(PICTURES / "normalise.png")


if __name__ == "__main__":
    main()
