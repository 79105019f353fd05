"""Layers with one input that cannot be one product."""

from collections.abc import Sequence

import torch

from workers.layers.linear import Linear
from workers.layers.placed import placed


class SplitLinear:
    """Several layers on one input, their outputs side by side.

    For weights that are quantized differently, or whose inputs are ordered differently.
    """

    def __init__(self, parts: Sequence[Linear]) -> None:
        self._parts = tuple(parts)
        self.out_features = sum(part.out_features for part in parts)

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """See Linear."""
        return placed(torch.cat([part(x) for part in self._parts], dim=1), out)
