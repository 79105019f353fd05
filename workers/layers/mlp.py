"""The feed-forward part of a decoder layer."""

from dataclasses import dataclass

import torch

from workers.kernels.silu_mul import silu_mul
from workers.layers.linear import Linear


@dataclass(frozen=True, slots=True)
class GatedMlp:
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    gate_up: Linear
    """hidden_size to 2 * intermediate_size, the gate first."""
    down: Linear

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden_size] to the same."""
        return self.down(silu_mul(self.gate_up(x)))
