"""What this machine can do at best: the limits that figures are held against."""

from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple

import torch

_READ_BYTES = 512 * 2**20
_GEMM_ROWS = 512
_GEMM_SIZE = 2048
_REPEATS = 7


class Hardware(NamedTuple):
    """Measured peaks of the CPU with the threads that torch uses."""

    read_bytes_per_s: float
    gemm_flop_per_s: float


def measure(dtype: torch.dtype) -> Hardware:
    """Read bandwidth over 512 MiB, and the rate of a large GEMM in `dtype`; best of 7."""
    data = torch.ones(_READ_BYTES // 8, dtype=torch.int64)
    read_s = _best_s(data.sum)
    left = torch.ones(_GEMM_ROWS, _GEMM_SIZE, dtype=dtype)
    right = torch.ones(_GEMM_SIZE, _GEMM_SIZE, dtype=dtype)
    gemm_s = _best_s(lambda: left @ right)
    return Hardware(_READ_BYTES / read_s, 2 * _GEMM_ROWS * _GEMM_SIZE**2 / gemm_s)


def _best_s(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(_REPEATS):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return min(times)
