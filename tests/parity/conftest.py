"""Before any test's file imports timm or transformers."""

from tests.parity import torchlike  # noqa: F401
