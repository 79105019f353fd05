"""Products of the CPU kernels equal torch's in float64, up to rounding."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workers.kernels.cpu_gemm import ARITHMETICS, Arithmetic, CpuGemm, PackedSpec, PackedWeight
from workers.kernels.library import Library
from workers.kernels.quantized_linear_reference import quantized_linear, quantized_linear_int8

_FLOATS: dict[Arithmetic, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

EXAMPLES = settings(
    max_examples=12,
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


@pytest.mark.parametrize("arithmetic", ["int8", "int8_int8", "int4", "int4_int8"])
@EXAMPLES
@given(
    rows=ROWS, groups=st.integers(1, 5), group_size=st.sampled_from([32, 64, 128, 256]),
    outputs=OUTPUTS, zeros=st.booleans(), order=st.booleans(), bias=st.booleans(),
    gated=st.booleans(), dtype=st.sampled_from([torch.float32, torch.bfloat16]), threads=THREADS,
    odd_inputs=INPUTS,
)  # fmt: skip
def test_quantized_products(
    library: Library,
    arithmetic: Arithmetic,
    rows: int,
    groups: int,
    group_size: int,
    outputs: int,
    zeros: bool,
    order: bool,
    bias: bool,
    gated: bool,
    dtype: torch.dtype,
    threads: int,
    odd_inputs: int,
) -> None:
    """For all codes, groups, zeros and orders: what the reference says, whatever the sizes."""
    library.set_num_threads(threads)
    gemm = CpuGemm(library)
    outputs *= 2 if gated else 1
    is_int4 = arithmetic.startswith("int4")
    inputs = groups * group_size if is_int4 else odd_inputs
    low, high, code_dtype = (0, 16, torch.uint8) if is_int4 else (-128, 128, torch.int8)
    codes = torch.randint(low, high, (outputs, inputs), dtype=code_dtype)
    scales = torch.rand(outputs, groups if is_int4 else 1) + 0.1
    zero_codes = torch.randint(0, 16, scales.shape, dtype=torch.uint8) if zeros else None
    x = torch.randn(rows, inputs).to(dtype)
    permutation = torch.randperm(inputs) if order else torch.arange(inputs)
    added = torch.randn(outputs) if bias else None
    weight = gemm.pack(
        PackedSpec(arithmetic, inputs, outputs, gated, group_size if is_int4 else 0),
        codes,
        scales=scales,
        zeros=zero_codes if is_int4 else None,
        bias=added,
        input_order=permutation if order else None,
    )
    reference = quantized_linear_int8 if arithmetic.endswith("_int8") else quantized_linear
    meaning_zero = (8 if zero_codes is None else zero_codes) if is_int4 else 0
    expected = reference(x[:, permutation].float(), codes, scales, meaning_zero, added)
    if gated:
        gate, up = expected.chunk(2, dim=-1)
        expected = F.silu(gate) * up
    _assert_close(_product(gemm, x, weight), expected)


def _random_weight(gemm: CpuGemm, arithmetic: Arithmetic) -> PackedWeight:
    inputs, outputs, group = 320, 70, 64 if arithmetic.startswith("int4") else 0
    spec = PackedSpec(arithmetic, inputs, outputs, group_size=group)
    if arithmetic in _FLOATS:
        return gemm.pack(spec, torch.randn(outputs, inputs).to(_FLOATS[arithmetic]))
    codes = torch.randint(0, 16, (outputs, inputs))
    codes = codes.to(torch.uint8) if group else codes.to(torch.int8)
    return gemm.pack(spec, codes, scales=torch.rand(outputs, spec.num_groups))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_a_row_does_not_depend_on_the_batch(
    library: Library, arithmetic: Arithmetic, threads: int
) -> None:
    """Bit for bit: alone, in small batches, in large ones, on any number of threads."""
    library.set_num_threads(threads)
    gemm = CpuGemm(library)
    weight = _random_weight(gemm, arithmetic)
    x = torch.randn(150, 320).to(_FLOATS.get(arithmetic, torch.bfloat16))
    alone = torch.cat([_product(gemm, x[row : row + 1], weight) for row in range(20)])
    for rows in (2, 3, 5, 8, 13, 20, 64, 150):
        together = _product(gemm, x[:rows], weight)
        assert torch.equal(together[:20], alone[:rows])


def test_what_does_not_fit_is_refused(library: Library) -> None:
    """By the name of the argument."""
    gemm = CpuGemm(library)
    weight = _random_weight(gemm, "float32")
    x, out = torch.randn(3, 320), torch.empty(3, 70)
    with pytest.raises(TypeError, match=r"x: got torch\.bfloat16, expected torch\.float32"):
        gemm.multiply(x.bfloat16(), weight, out)
    with pytest.raises(ValueError, match="x: got shape"):
        gemm.multiply(torch.randn(320, 3).T, weight, out)
    with pytest.raises(TypeError, match=r"out: got torch\.float16"):
        gemm.multiply(x, weight, out.half())
    with pytest.raises(ValueError, match="out: got strides"):
        gemm.multiply(x, weight, torch.empty(70, 3).T)
    with pytest.raises(ValueError, match="group_size: got 48, expected a multiple of 32"):
        gemm.pack(PackedSpec("int4", 96, 16, group_size=48), torch.zeros(16, 96))
    with pytest.raises(ValueError, match="scales: got None"):
        gemm.pack(PackedSpec("int8", 8, 16), torch.zeros(16, 8, dtype=torch.int8))
    with pytest.raises(ValueError, match="num_outputs: got 3"):
        gemm.pack(PackedSpec("float32", 8, 3, is_gated=True), torch.zeros(3, 8))


def test_recorded_products_play_on_new_contents(library: Library) -> None:
    """Of the same memory."""
    gemm = CpuGemm(library)
    weight = _random_weight(gemm, "bfloat16")
    x, out = torch.randn(3, 320).bfloat16(), torch.empty(3, 70, dtype=torch.bfloat16)
    with library.recording() as program:
        gemm.multiply(x, weight, out)
    x.copy_(torch.randn(3, 320))
    program.play()
    assert torch.equal(out, _product(gemm, x, weight))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("column", [0, 319])
def test_rows_that_are_not_finite_stay_so(library: Library, bad: float, column: int) -> None:
    """With int8 activations too, so that the engine can tell; other rows are not touched."""
    gemm = CpuGemm(library)
    for arithmetic in ("int8_int8", "int4_int8"):
        weight = _random_weight(gemm, arithmetic)
        x = torch.randn(3, 320)
        clean, out = torch.empty(3, 70), torch.empty(3, 70)
        gemm.multiply(x, weight, clean)
        x[1, column] = bad
        gemm.multiply(x, weight, out)
        assert out[1].isnan().all()
        assert torch.equal(out[::2], clean[::2])


def test_results_may_be_float32_for_bfloat16_rows(library: Library) -> None:
    """They are those of bfloat16 before rounding."""
    gemm = CpuGemm(library)
    weight = _random_weight(gemm, "bfloat16")
    x = torch.randn(3, 320).bfloat16()
    rounded, exact = torch.empty(3, 70, dtype=torch.bfloat16), torch.empty(3, 70)
    gemm.multiply(x, weight, rounded)
    gemm.multiply(x, weight, exact)
    assert torch.equal(exact.bfloat16(), rounded)
