"""Figures of products with weights."""

import pytest

from ops.bench import gemm, hardware
from ops.bench.gemm import bench_gemm, nearest_to_limit
from workers.kernels.library import load_library


@pytest.mark.skipif(load_library() is None, reason="no kernels on this machine")
def test_every_product_is_measured_in_bytes_and_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What is measured here need not be what the machine can do.
    monkeypatch.setattr(gemm, "_COLD_BYTES", 2**16)
    monkeypatch.setattr(hardware, "_READ_BYTES", 2**20)
    monkeypatch.setattr(hardware, "_GEMM_SIZE", 256)
    monkeypatch.setattr(hardware, "_PEAK_REPEATS", 20)
    rows = bench_gemm(["64x48"], ["float32", "int4_int8"], ["1", "9"], runs=1)
    ours = {(r.model, r.work, r.unit): r for r in rows if r.engine == "trunkline"}
    assert set(ours) == {
        (model, work, unit)
        for model in ("float32", "int4_int8")
        for work in ("1x64x48", "9x64x48")
        for unit in ("GB/s", "GFLOP/s")
    }
    assert all(row.limit is not None and 0 < row.low <= row.high for row in rows)
    assert len(nearest_to_limit(rows)) == len(rows) // 2


@pytest.mark.skipif(load_library() is None, reason="no kernels on this machine")
@pytest.mark.parametrize(
    ("shape", "arithmetic", "rows", "message"),
    [
        ("32", "float32", "1", "outputs: got ''"),
        ("32x8", "int3", "1", "arithmetics: got 'int3'"),
        ("32x8", "int8", "0", "rows: got '0'"),
    ],
)
def test_what_is_not_a_product_is_refused(
    shape: str, arithmetic: str, rows: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bench_gemm([shape], [arithmetic], [rows], runs=1)
