"""The reference products against plain arithmetic in float64."""

import pytest
import torch

from workers.kernels.quantized_linear_reference import (
    quantize_rows,
    quantized_linear,
    quantized_linear_int8,
)
from workers.layers.linear import make_linear
from workers.quantization.quantize import quantize_int4, quantize_int8
from workers.quantization.quantized_weight import QuantizedWeight


def weights() -> list[QuantizedWeight]:
    weight = torch.randn(24, 64)
    return [quantize_int8(weight, "none"), quantize_int4(weight, 32, "none")]


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_only(kind: int, has_bias: bool, dtype: torch.dtype) -> None:
    weight, x = weights()[kind], torch.randn(5, 64).to(dtype)
    bias = torch.randn(24).to(dtype) if has_bias else None
    zeros = weight.zero if weight.zeros is None else weight.zeros
    found = quantized_linear(x, weight.codes, weight.scales, zeros, bias)
    exact = x.double() @ weight.dequantize().double().T
    exact = exact if bias is None else exact + bias.double()
    assert found.dtype == dtype
    torch.testing.assert_close(found, exact.to(dtype))


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("has_bias", [True, False])
def test_with_int8_activations(kind: int, has_bias: bool) -> None:
    """The product of what the rows' codes and the weight stand for."""
    weight, x = weights()[kind], torch.randn(5, 64)
    bias = torch.randn(24) if has_bias else None
    zeros = weight.zero if weight.zeros is None else weight.zeros
    found = quantized_linear_int8(x, weight.codes, weight.scales, zeros, bias)
    rows, scales = quantize_rows(x)
    exact = (rows.double() * scales.double()) @ weight.dequantize().double().T
    exact = exact if bias is None else exact + bias.double()
    torch.testing.assert_close(found, exact.float(), atol=1e-5, rtol=1e-5)


def test_rows_are_quantized_by_themselves() -> None:
    """To within half a step of their largest value; rows of zeros stay zeros."""
    x = torch.randn(6, 32) * torch.tensor([1e-6, 1.0, 3.0, 1e6, 0.0, 7.0]).unsqueeze(1)
    codes, scales = quantize_rows(x)
    assert codes.abs().amax(1).tolist() == [127, 127, 127, 127, 0, 127]
    assert ((codes * scales - x).abs() <= scales * 0.501).all()


def test_halves_round_to_even() -> None:
    codes, scales = quantize_rows(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]]))
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2]]
    assert scales.item() == 1.0


def test_a_layer_puts_its_input_in_order() -> None:
    weight = quantize_int8(torch.randn(8, 32), "none")
    order = torch.randperm(32)
    ordered = QuantizedWeight(weight.codes, weight.scales, None, 8, 32, input_order=order)
    x = torch.randn(3, 32)
    torch.testing.assert_close(make_linear(ordered)(x), x @ ordered.dequantize().T)
    torch.testing.assert_close(make_linear(ordered)(x), x[:, order] @ weight.dequantize().T)
