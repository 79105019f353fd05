"""From all that checkpoints may hold to the few forms that kernels are written for."""

from dataclasses import replace

import torch

from workers.quantization.quantized_weight import QuantizedWeight

INT4_GROUP_SIZES = (128, 64, 32)
"""Groups that int4 kernels multiply, the preferred first."""


def served_form(weight: QuantizedWeight, dtype: torch.dtype) -> QuantizedWeight | torch.Tensor:
    """The same weight for a model of `dtype`, as int8 with one scale per output and no zeros, as
    int4 in groups of INT4_GROUP_SIZES, or else dequantized to `dtype`.

    Larger groups of int4 are divided, which changes nothing. With int4 the activations of a model
    that is not float32 become int8: no CPU multiplies 4 bits with bfloat16.
    """
    if weight.bits == 8:
        plain = weight.zeros is None and weight.group_size == weight.num_inputs
        return weight if plain else weight.dequantize().to(dtype)
    sizes = [size for size in INT4_GROUP_SIZES if weight.group_size % size == 0]
    if not sizes:
        return weight.dequantize().to(dtype)
    activations = weight.activations if dtype == torch.float32 else "int8"
    return replace(_with_groups(weight, sizes[0]), activations=activations)


def _with_groups(weight: QuantizedWeight, size: int) -> QuantizedWeight:
    copies = weight.group_size // size
    if copies == 1:
        return weight
    zeros = None if weight.zeros is None else weight.zeros.repeat_interleave(copies, dim=1)
    scales = weight.scales.repeat_interleave(copies, dim=1)
    return replace(weight, scales=scales, zeros=zeros, group_size=size)
