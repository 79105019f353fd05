"""Matrix products with weights of few bits."""

import torch

from workers.kernels.quantized_linear_reference import quantized_linear, quantized_linear_int8
from workers.layers.placed import placed
from workers.quantization.quantized_weight import QuantizedWeight


class ReferenceQuantizedLinear:
    """A quantized weight of any kind, multiplied by plain torch: right everywhere, and slow."""

    def __init__(self, weight: QuantizedWeight, bias: torch.Tensor | None) -> None:
        self._weight = weight
        self._bias = bias
        self.out_features = weight.num_outputs
        is_int8 = weight.activations == "int8"
        self._multiply = quantized_linear_int8 if is_int8 else quantized_linear

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """See Linear."""
        weight = self._weight
        ordered = x if weight.input_order is None else x[:, weight.input_order]
        zeros = weight.zero if weight.zeros is None else weight.zeros
        product = self._multiply(ordered, weight.codes, weight.scales, zeros, self._bias)
        return placed(product, out)
