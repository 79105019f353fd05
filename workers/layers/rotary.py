"""Rotary position embedding of one model."""

from typing import NamedTuple

import torch

from workers.layers.rope_scaling import RopeScaling


class Rotation(NamedTuple):
    """Cosines and sines of one step's positions, as `kernels.rotary.rotate` takes them."""

    cos: torch.Tensor
    """[T, 1, head_dim]"""
    signed_sin: torch.Tensor
    """[T, 1, head_dim]"""


class RotaryEmbedding:
    """Turns positions into rotations; all layers share one step's."""

    def __init__(
        self, scaling: RopeScaling, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._scaling = scaling
        self._frequencies = scaling.frequencies(head_dim).to(device)
        self._dtype = dtype

    def rotation(self, positions: torch.Tensor) -> Rotation:
        """Of int64 positions [T]; computed in float32, then rounded to the model's dtype."""
        angles = self._scaling.angles(positions, self._frequencies)[:, None]
        cos = angles.cos() * self._scaling.amplitude
        sin = angles.sin() * self._scaling.amplitude
        return Rotation(
            torch.cat((cos, cos), dim=-1).to(self._dtype),
            torch.cat((-sin, sin), dim=-1).to(self._dtype),
        )
