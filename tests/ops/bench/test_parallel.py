"""`trunkline bench parallel`: rows of what was measured, refused names."""

import math

import pytest

from ops.bench.exchange import bench_all_reduce
from ops.bench.parallel import bench_parallel
from workers.kernels.library import load_library


@pytest.mark.skipif(load_library() is None, reason="needs the CPU kernels")
def test_two_ranks_are_timed_over_shared_memory_and_gloo() -> None:
    rows = bench_all_reduce(runs=1, calls=3)
    assert {row.engine for row in rows} == {"gloo", "shared memory", "shared memory, recorded"}
    assert "8 x 1024" in {row.work for row in rows}
    assert all(row.unit == "us" and math.isfinite(row.median) and row.median > 0 for row in rows)


def test_an_unknown_figure_is_refused() -> None:
    with pytest.raises(ValueError, match="speed: expected some of all_reduce"):
        bench_parallel(["speed"], runs=1)
