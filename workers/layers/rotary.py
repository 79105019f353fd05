"""Rotary position embedding of one model."""

from typing import NamedTuple

import torch

from workers.layers.rope_scaling import RopeScaling


class Rotation(NamedTuple):
    """Where a step's rows stand, and how each position turns."""

    positions: torch.Tensor
    """int64 [T]"""
    table: torch.Tensor
    """[max_len, head_dim] in the model's dtype: cosines in the first half, sines in the other."""


class RotaryEmbedding:
    """The rotations of all positions; all layers share it."""

    def __init__(
        self,
        scaling: RopeScaling,
        head_dim: int,
        max_len: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """For positions below max_len; computed in float32, then rounded to the model's dtype."""
        angles = scaling.angles(torch.arange(max_len), scaling.frequencies(head_dim))
        halves = (angles.cos() * scaling.amplitude, angles.sin() * scaling.amplitude)
        self._table = torch.cat(halves, dim=-1).to(device, dtype)

    def rotation(self, positions: torch.Tensor) -> Rotation:
        """Of int64 positions [T]."""
        return Rotation(positions, self._table)
