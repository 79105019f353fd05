"""A weight of few bits in the one form that every reader, quantizer and kernel shares."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Bits = Literal[4, 8]
Activations = Literal["none", "int8"]

_CODE_DTYPES = {8: torch.int8, 4: torch.uint8}
_SYMMETRIC_ZERO = {8: 0, 4: 8}


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight of N outputs and K inputs as integers with scales, unpacked.

    With g = k // group_size, column k of what is stored here stands for

        w[n, k] = (codes[n, k] - zeros[n, g]) * scales[n, g]

    and is multiplied with x[:, input_order[k]]. On the fly quantization and most checkpoints make
    two kinds, which kernels are written for: int8 with one scale per output and no zeros, and int4
    with groups. Checkpoints may hold int8 with groups or zeros too, which is valid everywhere.

    Raises ValueError if the fields contradict each other.
    """

    codes: torch.Tensor
    """[N, K]. 8 bits: int8 in -128..127 (-128 in checkpoints only); 4 bits: uint8 in 0..15."""
    scales: torch.Tensor
    """float32 [N, K / group_size]."""
    zeros: torch.Tensor | None
    """The codes that mean zero, in the codes' dtype, [N, K / group_size]; None: all are 0 for
    8 bits and 8 for 4 bits."""
    bits: Bits
    group_size: int
    """Neighbouring inputs that share a scale; K where each output has one scale."""
    activations: Activations = "none"
    """How the layer treats its input: as it is, or as int8 with one scale per row, made from the
    row's largest absolute value."""
    input_order: torch.Tensor | None = None
    """int64 [K], a permutation: the layer multiplies x[:, input_order]; None leaves x as it is."""

    def __post_init__(self) -> None:
        outputs, inputs = self.codes.shape
        if self.codes.dtype != _CODE_DTYPES[self.bits]:
            raise ValueError(
                f"codes: got {self.codes.dtype}, expected {_CODE_DTYPES[self.bits]} "
                f"for {self.bits} bits"
            )
        if self.group_size < 1 or inputs % self.group_size:
            raise ValueError(
                f"group_size: got {self.group_size}, expected a divisor of {inputs} inputs"
            )
        grid = (outputs, inputs // self.group_size)
        _check("scales", self.scales, grid, torch.float32)
        if self.zeros is not None:
            _check("zeros", self.zeros, grid, self.codes.dtype)
        if self.input_order is not None:
            _check("input_order", self.input_order, (inputs,), torch.int64)

    @property
    def num_outputs(self) -> int:
        """N."""
        return self.codes.shape[0]

    @property
    def num_inputs(self) -> int:
        """K."""
        return self.codes.shape[1]

    @property
    def zero(self) -> int:
        """The code that means zero where there are no `zeros`."""
        return _SYMMETRIC_ZERO[self.bits]

    @property
    def packed_bytes(self) -> int:
        """Bytes of the codes at `bits` bits each, the scales and the zeros."""
        tables = [t for t in (self.scales, self.zeros, self.input_order) if t is not None]
        return self.codes.numel() * self.bits // 8 + sum(table.nbytes for table in tables)

    def dequantize(self) -> torch.Tensor:
        """float32 [N, K], its columns in the order of the layer's inputs."""
        codes = self.codes.view(self.num_outputs, -1, self.group_size).float()
        zeros = self.zero if self.zeros is None else self.zeros.float().unsqueeze(-1)
        weight = ((codes - zeros) * self.scales.unsqueeze(-1)).view(self.codes.shape)
        if self.input_order is None:
            return weight
        return torch.empty_like(weight).index_copy_(1, self.input_order, weight)

    def to(self, device: torch.device) -> "QuantizedWeight":
        """The same weight on a device."""
        return QuantizedWeight(
            codes=self.codes.to(device),
            scales=self.scales.to(device),
            zeros=None if self.zeros is None else self.zeros.to(device),
            bits=self.bits,
            group_size=self.group_size,
            activations=self.activations,
            input_order=None if self.input_order is None else self.input_order.to(device),
        )


def can_join(parts: Sequence[QuantizedWeight]) -> bool:
    """Whether weights with one input can be stacked along their outputs without a change."""
    return all(_is_alike(parts[0], part) for part in parts[1:])


def join(parts: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """Weights with one input, stacked along their outputs.

    Raises ValueError if `can_join` says no: then each has to stay a layer of its own.
    """
    if not can_join(parts):
        raise ValueError("only weights of equal bits, groups, activations and order can be joined")
    first = parts[0]
    zeros = None
    if any(part.zeros is not None for part in parts):
        zeros = torch.cat([_explicit_zeros(part) for part in parts])
    return QuantizedWeight(
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        zeros=zeros,
        bits=first.bits,
        group_size=first.group_size,
        activations=first.activations,
        input_order=first.input_order,
    )


def _is_alike(one: QuantizedWeight, other: QuantizedWeight) -> bool:
    if one.input_order is None or other.input_order is None:
        same_order = one.input_order is other.input_order
    else:
        same_order = torch.equal(one.input_order, other.input_order)
    return same_order and all(
        getattr(one, name) == getattr(other, name)
        for name in ("num_inputs", "bits", "group_size", "activations")
    )


def _explicit_zeros(part: QuantizedWeight) -> torch.Tensor:
    if part.zeros is not None:
        return part.zeros
    return torch.full_like(part.scales, part.zero, dtype=part.codes.dtype)


def _check(name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        found = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise ValueError(f"{name}: got {found}, expected {dtype} of shape {shape}")
