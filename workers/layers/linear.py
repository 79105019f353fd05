"""Matrix products with fixed weights."""

from typing import Protocol

import torch
import torch.nn.functional as F

from workers.layers.quantized_linear import ReferenceQuantizedLinear
from workers.quantization.quantized_weight import QuantizedWeight

_ROWS_HINT = 64
"""Rows that oneDNN lays a weight out for. Between 1 and 256, this hint was the fastest or within
noise of it for batches of 1 to 2048 rows, in bfloat16 and float32."""

_PACKED_DTYPES = frozenset({torch.float32, torch.bfloat16})


class Linear(Protocol):
    """A linear layer: x [T, in_features] to [T, out_features]."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x times the weight's transpose, plus the bias if there is one."""


class PlainLinear:
    """A weight as it is stored."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See Linear."""
        return F.linear(x, self._weight, self._bias)


class PackedLinear:
    """A weight in the blocked layout that oneDNN multiplies fastest with."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
        self._bias = bias
        self._multiply = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See Linear."""
        product: torch.Tensor = self._multiply(x, self._packed, self._bias, "none", [], "")
        return product


def make_linear(weight: torch.Tensor | QuantizedWeight, bias: torch.Tensor | None = None) -> Linear:
    """The fastest layer for weight [out_features, in_features] on its device.

    A packed layer does not keep `weight`: the caller should drop it too.
    """
    if isinstance(weight, QuantizedWeight):
        return ReferenceQuantizedLinear(weight, bias)
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if has_onednn and weight.device.type == "cpu" and weight.dtype in _PACKED_DTYPES:
        return PackedLinear(weight, bias)
    return PlainLinear(weight, bias)
