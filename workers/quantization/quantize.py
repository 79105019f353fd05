"""Weights quantized as they are loaded, without data to calibrate on."""

import torch

from workers.quantization.quantized_weight import Activations, QuantizedWeight

_INT8_MAX = 127
_INT4_MAX = 15
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""Shares of a group's range that are tried for its 16 codes."""
_CHUNK_ELEMENTS = 2**18
"""Weights quantized at a time: their float32 copies stay within a core's cache."""


def quantize_int8(weight: torch.Tensor, activations: Activations) -> QuantizedWeight:
    """Weight [N, K] of any float dtype as int8, symmetric, one scale per output.

    The scale is the row's largest absolute value over 127; codes round half to even.
    """
    rows = weight.float()
    scales = rows.abs().amax(dim=1, keepdim=True) / _INT8_MAX
    codes = (rows / _divisor(scales)).round_().to(torch.int8)
    return QuantizedWeight(codes, scales, None, 8, weight.shape[1], activations)


def quantize_int4(
    weight: torch.Tensor, group_size: int, activations: Activations
) -> QuantizedWeight:
    """Weight [N, K] of any float dtype as int4 with a scale and a zero per group of inputs.

    Of several ranges around zero, clipped by a fixed share each, every group takes the one of
    least squared error, its scale refitted to the codes by least squares.

    Raises ValueError if K is no multiple of `group_size`.
    """
    outputs, inputs = weight.shape
    if inputs % group_size:
        raise ValueError(f"group_size: got {group_size}, expected a divisor of {inputs} inputs")
    groups = weight.reshape(-1, group_size)
    parts = [_int4_groups(chunk.float()) for chunk in _chunks(groups)]
    codes, scales, zeros = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    grid = (outputs, inputs // group_size)
    return QuantizedWeight(
        codes.view(outputs, inputs), scales.view(grid), zeros.view(grid), 4, group_size, activations
    )


def _int4_groups(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes uint8 [G, group_size], scales float32 [G, 1] and zeros uint8 [G, 1] of each group."""
    low = groups.amin(dim=1, keepdim=True).clamp_(max=0)
    high = groups.amax(dim=1, keepdim=True).clamp_(min=0)
    best = _fitted(groups, low, high)
    for shrink in _SHRINKS[1:]:
        found = _fitted(groups, low * shrink, high * shrink)
        better = found[0] < best[0]
        best = tuple(torch.where(better, new, old) for new, old in zip(found, best, strict=True))
    _, codes, scales, zeros = best
    return codes.to(torch.uint8), scales, zeros.to(torch.uint8)


def _fitted(
    groups: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Squared error, codes, scales and zeros of groups whose codes span low to high."""
    scales = _divisor((high - low) / _INT4_MAX)
    zeros = (-low / scales).round_()
    codes = (groups / scales).round_().add_(zeros).clamp_(0, _INT4_MAX)
    steps = codes - zeros
    scales = (groups * steps).sum(1, keepdim=True) / _divisor((steps**2).sum(1, keepdim=True))
    error = steps.mul_(scales).sub_(groups).square_().sum(1, keepdim=True)
    return error, codes, scales, zeros


def _divisor(values: torch.Tensor) -> torch.Tensor:
    """The same, with ones for zeros: what they would divide is zero too."""
    return torch.where(values == 0, 1.0, values)


def _chunks(groups: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.split(groups, _CHUNK_ELEMENTS // groups.shape[1])
