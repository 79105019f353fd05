"""Threads: the same results on any number of them, our own or torch's, from any caller."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from workers.kernels.cpu_fused import CpuRowKernels
from workers.kernels.library import Library

ROWS, WIDTH = 300, 256
WEIGHT = torch.ones(WIDTH)


def normed(kernels: CpuRowKernels, x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    kernels.add_rms_norm(x.clone(), None, WEIGHT, 1e-6, out)
    return out


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_threads_computes_the_same(
    library: Library, count: int, shared: bool
) -> None:
    kernels = CpuRowKernels(library)
    x = torch.randn(ROWS, WIDTH)
    alone = normed(kernels, x)
    library.set_num_threads(count, shared_with_torch=shared)
    try:
        assert all(torch.equal(normed(kernels, x), alone) for _ in range(20))
    finally:
        library.set_num_threads(1)


def test_callers_on_several_threads_do_not_disturb_each_other(library: Library) -> None:
    kernels = CpuRowKernels(library)
    inputs = [torch.randn(ROWS, WIDTH) for _ in range(8)]
    expected = [normed(kernels, x) for x in inputs]
    library.set_num_threads(2)
    try:
        with ThreadPoolExecutor(4) as callers:
            for _ in range(10):
                found = list(callers.map(lambda x: normed(kernels, x), inputs))
                assert all(map(torch.equal, found, expected))
    finally:
        library.set_num_threads(1)
