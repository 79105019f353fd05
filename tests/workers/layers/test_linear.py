"""Linear layers, whole and cut among ranks."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from workers.kernels.cpu_gemm import PackedWeight, cpu_gemm
from workers.kernels.library import load_library
from workers.layers import linear
from workers.layers.linear import (
    Linear,
    NativeLinear,
    PlainLinear,
    make_gated_linear,
    make_linear,
)
from workers.layers.quantized_linear import ReferenceQuantizedLinear
from workers.layers.sharding import Shard
from workers.quantization.quantized_weight import Activations, Bits, QuantizedWeight

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@pytest.fixture(params=["kernels", "torch"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With our kernels where there are any, and as on a machine that has none."""
    if request.param == "torch":
        monkeypatch.setattr(linear, "load_library", lambda: None)


@DTYPES
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 3, 64, 130])
def test_equals_plain(dtype: torch.dtype, has_bias: bool, num_rows: int) -> None:
    x, weight = torch.randn(num_rows, 48).to(dtype), torch.randn(56, 48).to(dtype)
    bias = torch.randn(56).to(dtype) if has_bias else None
    layer = make_linear(weight, bias)
    assert layer.out_features == 56
    torch.testing.assert_close(layer(x), F.linear(x, weight, bias), atol=1e-5, rtol=1.6e-2)


@DTYPES
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("num_rows", [1, 5, 40])
def test_gated_equals_silu_mul(dtype: torch.dtype, num_rows: int) -> None:
    x, weight = torch.randn(num_rows, 48).to(dtype), torch.randn(40, 48).to(dtype)
    bias = torch.randn(40).to(dtype)
    layer = make_gated_linear(weight, bias)
    assert layer.out_features == 20
    gate, up = F.linear(x.double(), weight.double(), bias.double()).chunk(2, dim=-1)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    expected = (F.silu(gate) * up).to(dtype)
    torch.testing.assert_close(layer(x), expected, atol=tolerance, rtol=tolerance)


@DTYPES
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("make", [make_linear, make_gated_linear])
def test_out_takes_the_result(make: Callable[[torch.Tensor], Linear], dtype: torch.dtype) -> None:
    layer, x = make(torch.randn(6, 5).to(dtype)), torch.randn(3, 5).to(dtype)
    out = torch.full((3, layer.out_features), torch.nan, dtype=dtype)
    assert layer(x, out) is out
    assert torch.equal(out, layer(x))


def test_a_layer_made_of_what_is_packed_is_the_same() -> None:
    layer, x = make_linear(torch.randn(40, 24), torch.randn(40)), torch.randn(3, 24)
    if not isinstance(layer, NativeLinear):
        pytest.skip("no kernels on this machine")
    spec, tensors = layer.packed
    read = {name: tensor.clone() for name, tensor in tensors.items()}
    library = load_library()
    assert library is not None
    again = NativeLinear(cpu_gemm(library), PackedWeight(spec, read))
    assert torch.equal(again(x), layer(x))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("activations", ["none", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantized_weights(bits: Bits, activations: Activations, dtype: torch.dtype) -> None:
    """Whole and gated layers equal the reference, whose rows are in float32."""
    order = torch.randperm(64)
    weight = QuantizedWeight(
        codes=torch.randint(0, 16, (40, 64)).to(torch.uint8 if bits == 4 else torch.int8),
        scales=torch.rand(40, 2 if bits == 4 else 1),
        zeros=torch.randint(0, 16, (40, 2), dtype=torch.uint8) if bits == 4 else None,
        bits=bits,
        group_size=32 if bits == 4 else 64,
        activations=activations,
        input_order=order,
    )
    x, bias = torch.randn(5, 64).to(dtype), torch.randn(40)
    expected = ReferenceQuantizedLinear(weight, bias)(x.float())
    gate, up = expected.chunk(2, dim=-1)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    for make, result in ((make_linear, expected), (make_gated_linear, F.silu(gate) * up)):
        found = make(weight, bias)(x).float()
        atol = tolerance * float(result.abs().max())
        torch.testing.assert_close(found, result, atol=atol, rtol=tolerance)


def test_a_dtype_that_cannot_be_packed_stays_plain() -> None:
    layer = make_linear(torch.ones(2, 3, dtype=torch.float64))
    assert isinstance(layer, PlainLinear)
    assert layer(torch.ones(1, 3, dtype=torch.float64)).tolist() == [[3.0, 3.0]]


def test_parts_cover_everything_once() -> None:
    parts = [Shard(rank, 4).part(12) for rank in range(4)]
    assert [index for part in parts for index in range(12)[part]] == list(range(12))


def test_uneven_parts_and_impossible_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="10 does not divide evenly among 4 ranks"):
        Shard(0, 4).part(10)
    with pytest.raises(ValueError, match="rank 2 is not within world size 2"):
        Shard(2, 2)
