"""Row kernels equal float64 arithmetic rounded once, on every build, alone and in any batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.kernels.cpu_fused import CpuRowKernels
from workers.kernels.library import Library
from workers.kernels.row_kernels import row_kernels

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
SHAPES = {"num_rows": st.integers(1, 5), "width": st.integers(1, 200), "seed": st.integers(0, 99)}
SETTINGS = settings(max_examples=25, deadline=None)


def randn(dtype: torch.dtype, seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_rounded(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Within float32's error of the exact value, and half a unit of the type's last place."""
    rtol = 2e-6 if found.dtype == torch.float32 else 2**-8 + 2e-6
    torch.testing.assert_close(found.double(), exact, rtol=rtol, atol=1e-7)


@DTYPES
def test_add_rms_norm(library: Library, dtype: torch.dtype) -> None:
    @SETTINGS
    @given(**SHAPES)
    def holds(num_rows: int, width: int, seed: int) -> None:
        residual, delta = randn(dtype, seed, 2, num_rows, width).unbind()
        weight, out = randn(dtype, seed + 1, width), torch.empty(num_rows, width, dtype=dtype)
        total = residual + delta
        exact = total.double()
        scale = (exact.square().mean(dim=-1, keepdim=True) + 1e-5).rsqrt()
        CpuRowKernels(library).add_rms_norm(residual, delta, weight, 1e-5, out)
        assert torch.equal(residual, total)
        assert_rounded(out, exact * scale * weight.double())
        again = torch.empty_like(out)
        CpuRowKernels(library).add_rms_norm(residual, None, weight, 1e-5, again)
        assert torch.equal(residual, total)
        assert torch.equal(again, out)

    holds()


@DTYPES
def test_silu_mul(library: Library, dtype: torch.dtype) -> None:
    @SETTINGS
    @given(**SHAPES, scale=st.sampled_from([1.0, 30.0, 1e4]))
    def holds(num_rows: int, width: int, seed: int, scale: float) -> None:
        gate_up = randn(dtype, seed, num_rows, 2 * width) * scale
        out = torch.empty(num_rows, width, dtype=dtype)
        CpuRowKernels(library).silu_mul(gate_up, out)
        gate, up = gate_up.double().chunk(2, dim=-1)
        assert_rounded(out, torch.nn.functional.silu(gate) * up)

    holds()


@DTYPES
def test_gather_rows_and_embed(library: Library, dtype: torch.dtype) -> None:
    table, rows = randn(dtype, 0, 50, 37), torch.tensor([49, 0, 7, 7])
    out = torch.empty(4, 37, dtype=dtype)
    CpuRowKernels(library).gather_rows(table, rows, out)
    assert torch.equal(out, table[rows])
    CpuRowKernels(library).embed(rows.flip(0), table, out)
    assert torch.equal(out, table[rows.flip(0)])


@pytest.mark.parametrize("make", ["library", "torch"])
@DTYPES
def test_ids_that_the_table_does_not_hold_embed_as_zeros(
    library: Library, dtype: torch.dtype, make: str
) -> None:
    table, ids = randn(dtype, 0, 50, 37), torch.tensor([99, 100, 117, 149, 150, 0, -1])
    out = torch.full((7, 37), torch.nan, dtype=dtype)
    kernels = row_kernels(library if make == "library" else None)
    kernels.embed(ids, table, out, 100)
    zeros = torch.zeros(37, dtype=dtype)
    assert torch.equal(out, torch.stack([zeros, table[0], table[17], table[49], *[zeros] * 3]))
    kernels.embed(ids[-2:-1], table, out[:1])
    assert torch.equal(out[:1], table[:1])


@DTYPES
def test_add(library: Library, dtype: torch.dtype) -> None:
    @SETTINGS
    @given(**SHAPES)
    def holds(num_rows: int, width: int, seed: int) -> None:
        residual, delta = randn(dtype, seed, 2, num_rows, width).unbind()
        total, before = residual + delta, delta.clone()
        CpuRowKernels(library).add(residual, delta)
        assert torch.equal(residual, total)
        assert torch.equal(delta, before)

    holds()


@DTYPES
@pytest.mark.parametrize("width", [1, 31, 64, 100])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_rows_with_a_value_that_is_not_finite_are_found(
    library: Library, dtype: torch.dtype, width: int, bad: float
) -> None:
    x = torch.full((width + 1, width), torch.finfo(dtype).max, dtype=dtype)
    x.fill_diagonal_(bad)
    out = torch.empty(width + 1, dtype=torch.bool)
    CpuRowKernels(library).are_finite(x, out)
    assert out.tolist() == [False] * width + [True]


@DTYPES
def test_nan_stays_in_its_row(library: Library, dtype: torch.dtype) -> None:
    """All of which is NaN afterwards, whatever the payload: no kernel hides a broken row."""
    x = randn(dtype, 0, 3, 48)
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    x[1].view(integer)[5] = torch.iinfo(integer).max  # a NaN that naive rounding makes finite
    weight, out = torch.ones(48, dtype=dtype), torch.empty_like(x)
    CpuRowKernels(library).add_rms_norm(x, torch.zeros_like(x), weight, 1e-5, out)
    assert out.isnan().all(dim=-1).tolist() == [False, True, False]
    assert out.isnan().any(dim=-1).tolist() == [False, True, False]
    gated = torch.empty(3, 24, dtype=dtype)
    CpuRowKernels(library).silu_mul(x, gated)
    assert gated.isnan().any(dim=-1).tolist() == [False, True, False]


@DTYPES
def test_results_depend_neither_on_threads_nor_on_other_rows(
    library: Library, dtype: torch.dtype
) -> None:
    kernels = CpuRowKernels(library)
    residual, delta = randn(dtype, 0, 2, 100, 2048).unbind()
    weight = randn(dtype, 1, 2048)

    def run(rows: slice) -> list[torch.Tensor]:
        total, normed = residual[rows].clone(), torch.empty_like(residual[rows])
        kernels.add_rms_norm(total, delta[rows], weight, 1e-5, normed)
        gated = torch.empty(len(total), 1024, dtype=dtype)
        kernels.silu_mul(normed, gated)
        return [total, normed, gated]

    one_thread = run(slice(None))
    library.set_num_threads(2)
    try:
        two_threads = run(slice(None))
    finally:
        library.set_num_threads(1)
    alone = [run(slice(row, row + 1)) for row in (0, 57, 99)]
    for index, found in enumerate(one_thread):
        assert torch.equal(found, two_threads[index])
        assert torch.equal(found[[0, 57, 99]], torch.cat([row[index] for row in alone]))


def test_arguments_that_do_not_fit_are_named(library: Library) -> None:
    kernels, x = CpuRowKernels(library), torch.zeros(3, 8)
    with pytest.raises(TypeError, match="weight"):
        kernels.add_rms_norm(x, None, torch.zeros(8).bfloat16(), 1e-5, x)
    with pytest.raises(ValueError, match="delta"):
        kernels.add_rms_norm(x, torch.zeros(2, 8), torch.zeros(8), 1e-5, x)
    with pytest.raises(TypeError, match="delta"):
        kernels.add(x, x.bfloat16())
    with pytest.raises(ValueError, match="gate_up"):
        kernels.silu_mul(x[:, :4], torch.zeros(3, 2))
    with pytest.raises(TypeError, match="rows"):
        kernels.gather_rows(x, torch.zeros(3, dtype=torch.int32), x)
    with pytest.raises(ValueError, match="out"):
        kernels.are_finite(x, torch.zeros(2, dtype=torch.bool))
    with pytest.raises(TypeError, match="x"):
        kernels.are_finite(x.double(), torch.zeros(3, dtype=torch.bool))
