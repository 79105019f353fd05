"""Codes as checkpoints pack them: several in each 32-bit word, lowest bits first."""

import torch

from workers.quantization.quantized_weight import Activations, Bits, QuantizedWeight

WORD_BITS = 32


def unpack(words: torch.Tensor, bits: Bits) -> torch.Tensor:
    """The codes in int32 words [R, W]: uint8 [R, W * 32 / bits], in a little-endian machine's
    order, which is that of the files."""
    # A transposed tensor of one column counts as contiguous, but cannot be viewed as bytes.
    octets = words.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    if bits == 8:
        return octets
    return torch.stack((octets & 15, octets >> 4), dim=-1).flatten(1)


def from_unsigned(
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bits: Bits,
    group_size: int,
    activations: Activations = "none",
    input_order: torch.Tensor | None = None,
) -> QuantizedWeight:
    """A weight from codes and zeros that both count from 0, as uint8 [N, K] and [N, K / group].

    Without zeros, or with only such zeros, the middle code means zero.
    """
    middle = 1 << (bits - 1)
    if zeros is not None and bool((zeros == middle).all()):
        zeros = None
    if bits == 8:
        codes = _centred(codes)
        zeros = None if zeros is None else _centred(zeros)
    return QuantizedWeight(
        codes.contiguous(), scales, zeros, bits, group_size, activations, input_order
    )


def _centred(codes: torch.Tensor) -> torch.Tensor:
    """uint8 codes less 128, as int8."""
    return (codes ^ 128).view(torch.int8)
