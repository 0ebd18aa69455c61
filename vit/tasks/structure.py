"""What a task's model consists of, known before the model is made."""

import functools
from abc import ABC, abstractmethod
from typing import Any

import jax
from flax import nnx

from vit.models.vit import Params, split


class Structured(ABC):
    """A task that can build its model."""

    @abstractmethod
    def build(self, rngs: nnx.Rngs) -> Any:
        """A freshly initialised model."""

    @functools.cached_property
    def abstract(self) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
        """The model's structure, and its parameters' shapes by path; nothing is computed."""
        graphs = []

        def parameters() -> Params:
            graph, params = split(self.build(nnx.Rngs(0)))
            graphs.append(graph)
            return params

        shapes = jax.eval_shape(parameters)
        return graphs[0], shapes

    @property
    def graph(self) -> nnx.GraphDef:
        """The model's structure, which with parameters is a model (`vit.models.vit.merge`)."""
        return self.abstract[0]
