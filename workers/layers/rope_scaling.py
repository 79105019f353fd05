"""Rotary frequencies: the original ones and the ways to stretch them over longer contexts.

The formulas are those of transformers' `modeling_rope_utils`, so that models trained or served
there see the same angles here.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch


class RopeScaling(ABC):
    """How fast each pair of a head's elements turns with the position."""

    @property
    def amplitude(self) -> float:
        """Factor on the cosines and sines."""
        return 1.0

    @abstractmethod
    def frequencies(self, head_dim: int) -> torch.Tensor:
        """Radians per position of each pair, float32 [head_dim / 2]."""

    def angles(self, positions: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
        """Radians, float32 [T, head_dim / 2], of int64 positions [T] at `frequencies`."""
        return positions.float()[:, None] * frequencies


@dataclass(frozen=True, slots=True)
class DefaultRope(RopeScaling):
    """RoFormer's frequencies (Su et al., 2021)."""

    theta: float

    def frequencies(self, head_dim: int) -> torch.Tensor:
        """theta^(-2i / head_dim)."""
        return _frequencies(self.theta, head_dim)


@dataclass(frozen=True, slots=True)
class LinearRope(RopeScaling):
    """Position interpolation (Chen et al., 2023)."""

    theta: float
    factor: float

    def frequencies(self, head_dim: int) -> torch.Tensor:
        """The default ones over `factor`."""
        return _frequencies(self.theta, head_dim) / self.factor


@dataclass(frozen=True, slots=True)
class DynamicRope(RopeScaling):
    """Dynamic NTK-aware scaling: theta grows once a sequence outgrows its training length.

    transformers takes theta from the longest sequence of a forward call, so that a token's key
    depends on what it was batched with. Here theta at position p is that of a sequence of
    p + 1 tokens: keys depend on their own prefix only, which batching, chunked prefill and
    shared prefixes need. The two agree for every prompt within `max_position_embeddings`,
    also while it is continued beyond; they differ within longer prompts.
    """

    theta: float
    factor: float
    max_position_embeddings: int

    def frequencies(self, head_dim: int) -> torch.Tensor:
        """The default ones, which hold within the training length."""
        return _frequencies(self.theta, head_dim)

    def angles(self, positions: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
        """Each position's own growth of theta slows its frequencies."""
        head_dim = 2 * len(frequencies)
        lengths = (positions + 1).clamp_min(self.max_position_embeddings).float()
        growth = self.factor * lengths / self.max_position_embeddings - (self.factor - 1)
        powers = _exponents(head_dim).to(positions.device) * (-head_dim / (head_dim - 2))
        slowed = frequencies * growth[:, None] ** powers
        return positions.float()[:, None] * slowed


@dataclass(frozen=True, slots=True)
class Llama3Rope(RopeScaling):
    """Llama 3.1's scaling: slow pairs are slowed by `factor`, fast ones kept, a ramp between."""

    theta: float
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def frequencies(self, head_dim: int) -> torch.Tensor:
        """The ramp runs over the number of turns a pair makes in the original context."""
        plain = _frequencies(self.theta, head_dim)
        turns = self.original_max_position_embeddings * plain / (2 * math.pi)
        span = self.high_freq_factor - self.low_freq_factor
        keep = ((turns - self.low_freq_factor) / span).clamp(0, 1)
        return torch.lerp(plain / self.factor, plain, keep)


@dataclass(frozen=True, slots=True)
class YarnRope(RopeScaling):
    """YaRN (Peng et al., 2023): interpolate by wavelength, and scale the cosines and sines."""

    theta: float
    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float
    beta_slow: float
    truncate: bool

    @property
    def amplitude(self) -> float:
        """YaRN's attention factor."""
        return self.attention_factor

    def frequencies(self, head_dim: int) -> torch.Tensor:
        """The ramp runs over the pairs between `beta_fast` and `beta_slow` turns."""
        plain = _frequencies(self.theta, head_dim)
        low, high = self._ramp(head_dim)
        pairs = torch.arange(head_dim // 2, dtype=torch.float32)
        interpolate = ((pairs - low) / (high - low)).clamp(0, 1)
        return torch.lerp(plain, plain / self.factor, interpolate)

    def _ramp(self, head_dim: int) -> tuple[float, float]:
        low = self._pair_with_turns(self.beta_fast, head_dim)
        high = self._pair_with_turns(self.beta_slow, head_dim)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        return low, high if high != low else high + 0.001

    def _pair_with_turns(self, turns: float, head_dim: int) -> float:
        wavelength_ratio = self.original_max_position_embeddings / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength_ratio) / (2 * math.log(self.theta))


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """YaRN's temperature as a factor on cosines and sines."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _exponents(head_dim: int) -> torch.Tensor:
    return torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim


def _frequencies(theta: float, head_dim: int) -> torch.Tensor:
    return 1.0 / theta ** _exponents(head_dim)
