"""The part of a run's description that says how parameters move: optimisers, schedule, LoRA. `vit.config` offers all of it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from vit.limits import Count, Natural, NonNegative, Positive, Range, Share

UpToOne = Annotated[float, Range(0, 1, open="low")]


@dataclass(frozen=True)
class AdamW:
    """AdamW (arXiv 1711.05101)."""

    lr: Positive = 1e-3
    """Peak learning rate."""
    weight_decay: NonNegative = 0.05
    """Decoupled decay of kernels, times the learning rate (biases, norms, positions and tokens are left alone)."""
    b1: Share = 0.9
    """Decay of the mean of gradients."""
    b2: Share = 0.999
    """Decay of the mean of squared gradients."""
    layer_decay: UpToOne = 1.0
    """Factor on the learning rate from each layer to the one below it (arXiv 2106.08254); 1: the same for all."""


@dataclass(frozen=True)
class Muon:
    """Muon (kellerjordan.github.io/posts/muon) on the matrices of the blocks, AdamW on everything else.

    Updates are scaled to the size of AdamW's (arXiv 2502.16982), so one learning rate and one decay serve both.
    """

    lr: Positive = 2e-3
    """Peak learning rate."""
    weight_decay: NonNegative = 0.1
    """Decoupled decay of kernels, times the learning rate."""
    momentum: Share = 0.95
    """Nesterov momentum of the matrices."""
    b1: Share = 0.9
    """Decay of the mean of the others' gradients."""
    b2: Share = 0.95
    """Decay of the mean of the others' squared gradients."""
    layer_decay: UpToOne = 1.0
    """Factor on the learning rate from each layer to the one below it (arXiv 2106.08254); 1: the same for all."""


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum, weight decay as L2 penalty."""

    lr: Positive = 1e-2
    """Peak learning rate."""
    weight_decay: NonNegative = 0.0
    """L2 penalty on kernels, added to their gradient."""
    momentum: Share = 0.9
    """Momentum."""
    layer_decay: UpToOne = 1.0
    """Factor on the learning rate from each layer to the one below it (arXiv 2106.08254); 1: the same for all."""


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the run."""

    warmup: Natural = 0
    """Steps of linear warm-up to the peak."""
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    """What follows the warm-up: down to 0 at the last step, or constant."""
    sizes: tuple[Count, ...] = ()
    """Sides in pixels that images are shrunk to at first, one after the other (progressive resizing)."""
    until: tuple[Share, ...] = ()
    """Share of the steps at which each of these sizes ends; after the last comes the full size."""


@dataclass(frozen=True)
class LoraConfig:
    """LoRA (arXiv 2106.09685): train low-rank additions to the blocks' matrices, and the head; all else is frozen."""

    rank: Natural = 0
    """Rank of the additions; 0: none."""
    alpha: Positive = 16.0
    """The additions are scaled by alpha / rank."""
