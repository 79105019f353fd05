"""What sets one decoder-only architecture apart from another."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Architecture:
    """The parts of a decoder layer that differ between the supported architectures."""

    windows: tuple[int | None, ...]
    """Each layer's sliding window in tokens; None sees everything."""
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """Whether each head of the queries and keys is RMS-normalised before rotation."""
