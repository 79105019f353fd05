"""`trunkline bench parallel`: rows of what was measured, refused names."""

import math

import pytest

from ops.bench.exchange import bench_all_reduce
from ops.bench.parallel import bench_parallel
from ops.bench.plans import bench_plan
from workers.kernels.library import load_library


@pytest.mark.skipif(load_library() is None, reason="needs the CPU kernels")
def test_two_ranks_are_timed_over_shared_memory_and_gloo() -> None:
    rows = bench_all_reduce(runs=1, calls=3)
    assert {row.engine for row in rows} == {"gloo", "shared memory", "shared memory, recorded"}
    assert "8 x 1024" in {row.work for row in rows}
    assert all(row.unit == "us" and math.isfinite(row.median) and row.median > 0 for row in rows)


@pytest.mark.skipif(load_library() is None, reason="needs the CPU kernels")
def test_plans_are_timed_there_and_back() -> None:
    rows = bench_plan(runs=1, calls=3)
    assert len(rows) == len({row.work for row in rows}) == 2
    assert all(row.unit == "us" and math.isfinite(row.median) and row.median > 0 for row in rows)


@pytest.mark.parametrize(("name", "layout"), [("tensor", "tensor 2"), ("pipeline", "pipeline 2")])
def test_two_ranks_are_timed_beside_one(name: str, layout: str) -> None:
    rows = bench_parallel([name], "demo-small", runs=1)
    assert [row.engine for row in rows] == ["1 rank", layout]
    assert all(row.unit == "tokens/s" and row.median > 0 for row in rows)


@pytest.mark.parametrize(
    ("names", "model", "refused"),
    [(["speed"], "demo-small", "figures: got speed"), (["plan"], "tiny", "model: got tiny")],
)
def test_unknown_names_are_refused(names: list[str], model: str, refused: str) -> None:
    with pytest.raises(ValueError, match=refused):
        bench_parallel(names, model, runs=1)
