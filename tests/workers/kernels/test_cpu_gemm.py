"""Products of the CPU kernels equal torch's in float64, up to rounding."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workers.kernels.cpu_gemm import Arithmetic, CpuGemm, PackedSpec, PackedWeight
from workers.kernels.library import Library

_FLOATS: dict[Arithmetic, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

EXAMPLES = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
ROWS = st.integers(1, 20) | st.sampled_from([64, 97, 130])
INPUTS = st.integers(1, 70) | st.sampled_from([300, 512])
OUTPUTS = st.integers(1, 70)
THREADS = st.sampled_from([1, 2])


def _product(gemm: CpuGemm, x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    out = torch.full((len(x), weight.spec.num_results), torch.nan, dtype=x.dtype)
    gemm.multiply(x, weight, out)
    return out


def _assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within float32's rounding of sums, and that of the result to its own dtype."""
    tolerance = 1e-2 if found.dtype == torch.bfloat16 else 1e-5
    scale = float(expected.abs().max())
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=tolerance, atol=tolerance * scale
    )


@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16"])
@EXAMPLES
@given(
    rows=ROWS, inputs=INPUTS, outputs=OUTPUTS, bias=st.booleans(), gated=st.booleans(),
    threads=THREADS,
)  # fmt: skip
def test_float_products(
    library: Library,
    arithmetic: Arithmetic,
    rows: int,
    inputs: int,
    outputs: int,
    bias: bool,
    gated: bool,
    threads: int,
) -> None:
    """For any sizes, with and without bias and gate."""
    library.set_num_threads(threads)
    gemm, dtype = CpuGemm(library), _FLOATS[arithmetic]
    outputs *= 2 if gated else 1
    x, weight = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    added = torch.randn(outputs).to(dtype) if bias else None
    packed = gemm.pack(PackedSpec(arithmetic, inputs, outputs, gated), weight, bias=added)
    expected = F.linear(x.double(), weight.double(), None if added is None else added.double())
    if gated:
        gate, up = expected.chunk(2, dim=-1)
        expected = F.silu(gate) * up
    _assert_close(_product(gemm, x, packed), expected)
