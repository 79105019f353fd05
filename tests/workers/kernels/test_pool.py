"""The pool: every chunk is done once, whatever the number of threads and of callers."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from workers.kernels.cpu_fused import CpuRowKernels
from workers.kernels.library import Library

MANY_ROWS, FEW_ROWS, WIDTH = 600, 2, 1024


@pytest.fixture
def threads(library: Library, request: pytest.FixtureRequest) -> Iterator[Library]:
    library.set_num_threads(request.param)
    yield library
    library.set_num_threads(1)


def gate_up(num_rows: int) -> torch.Tensor:
    return torch.randn(num_rows, 2 * WIDTH)


def gated(library: Library, x: torch.Tensor) -> torch.Tensor:
    out = torch.full((len(x), WIDTH), torch.nan)
    CpuRowKernels(library).silu_mul(x, out)
    return out


ALL = pytest.mark.parametrize("threads", [1, 2, 5], indirect=True)


@ALL
def test_all_chunks_are_done(threads: Library) -> None:
    """Again and again: also while workers still leave the job before."""
    x = gate_up(MANY_ROWS)
    expected = torch.nn.functional.silu(x[:, :WIDTH]) * x[:, WIDTH:]
    for _ in range(50):
        torch.testing.assert_close(gated(threads, x), expected)


@ALL
def test_callers_at_the_same_time_get_what_each_gets_alone(threads: Library) -> None:
    rows = [gate_up(MANY_ROWS if index % 2 else FEW_ROWS) for index in range(12)]
    alone = [gated(threads, x) for x in rows]
    with ThreadPoolExecutor(4) as callers:
        together = list(callers.map(lambda x: gated(threads, x), rows * 4))
    for index, found in enumerate(together):
        assert torch.equal(found, alone[index % len(rows)])


def test_the_number_of_threads_changes_between_jobs(library: Library) -> None:
    x = gate_up(MANY_ROWS)
    expected = gated(library, x)
    try:
        for count in (3, 1, 2, 2, 8, 1):
            library.set_num_threads(count)
            assert torch.equal(gated(library, x), expected)
    finally:
        library.set_num_threads(1)


def test_a_program_plays_on_what_its_memory_holds_now(library: Library) -> None:
    """All its calls, in order, and keeps that memory alive."""
    kernels, out = CpuRowKernels(library), torch.empty(FEW_ROWS, WIDTH)
    x, is_finite = gate_up(FEW_ROWS), torch.empty(FEW_ROWS, dtype=torch.bool)
    with library.recording() as program:
        kernels.silu_mul(x, out)
        kernels.are_finite(out, is_finite)
    assert is_finite.all()
    other = gate_up(FEW_ROWS)
    other[1, 0] = torch.nan
    x.copy_(other)
    references = sys.getrefcount(x)
    program.play()
    torch.testing.assert_close(out[0], gated(library, other)[0])
    assert is_finite.tolist() == [True, False]
    del program
    assert sys.getrefcount(x) < references


def test_calls_after_a_recording_are_not_part_of_it(library: Library) -> None:
    x, out = gate_up(FEW_ROWS), torch.empty(FEW_ROWS, WIDTH)
    with library.recording() as program:
        CpuRowKernels(library).silu_mul(x, out)
    after = gated(library, x)
    expected = after.clone()
    after.zero_()
    program.play()
    assert torch.equal(out, expected)
    assert not after.any()
