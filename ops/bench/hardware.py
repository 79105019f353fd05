"""What this machine can do at best: the limits that figures are held against."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import NamedTuple

import torch

from workers.engine.cpus import usable_cpus
from workers.kernels.library import Library, load_library

_READ_BYTES = 512 * 2**20
_GEMM_ROWS = 512
_GEMM_SIZE = 2048
_REPEATS = 7
_PEAK_CHUNKS, _PEAK_REPEATS = 256, 20_000


class Hardware(NamedTuple):
    """Measured peaks of the CPU."""

    read_bytes_per_s: float
    gemm_flop_per_s: float


def measure(num_threads: int | None = None) -> Hardware:
    """Read bandwidth over 512 MiB, and the rate of products of floats; the best of 7.

    The rate is that of a large bfloat16 product by torch where the processor has instructions for
    it. Elsewhere bfloat16 is multiplied as float32: a large product by torch, or multiply-adds on
    registers alone, whichever is faster.

    Args:
        num_threads: To measure with; None for all that the process may use.
    """
    count = num_threads or usable_cpus()
    with _torch_threads(count):
        data = torch.ones(_READ_BYTES // 8, dtype=torch.int64)
        read_s = _best_s(data.sum)
        has_bfloat16: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        rates = [_gemm_rate(torch.bfloat16 if has_bfloat16 else torch.float32)]
    library = load_library()
    if library is not None and not has_bfloat16:
        library.set_num_threads(count)
        rates.append(fma_peak(library))
    return Hardware(_READ_BYTES / read_s, max(rates))


def fma_peak(library: Library) -> float:
    """float32 operations per second of multiply-adds on registers alone, on all threads."""
    kernel = library.kernel("fma_peak", _PeakArgs)
    sums, flops = torch.empty(_PEAK_CHUNKS), torch.empty(1, dtype=torch.int64)
    args = _PeakArgs(_PEAK_CHUNKS, _PEAK_REPEATS, sums.data_ptr(), flops.data_ptr())
    seconds = _best_s(lambda: kernel(args, sums, flops))
    return float(flops) / seconds


class _PeakArgs(ctypes.Structure):
    _fields_ = (
        ("num_chunks", ctypes.c_int64),
        ("repeats", ctypes.c_int64),
        ("sums", ctypes.c_void_p),
        ("flops", ctypes.c_void_p),
    )


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _gemm_rate(dtype: torch.dtype) -> float:
    left = torch.ones(_GEMM_ROWS, _GEMM_SIZE, dtype=dtype)
    right = torch.ones(_GEMM_SIZE, _GEMM_SIZE, dtype=dtype)
    return 2 * _GEMM_ROWS * _GEMM_SIZE**2 / _best_s(lambda: left @ right)


def _best_s(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(_REPEATS):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return min(times)
