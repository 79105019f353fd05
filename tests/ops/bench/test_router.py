"""`trunkline bench router`: a row for each step of a choice, with the goals as limits."""

import math

import pytest

from ops.bench import router
from ops.bench.router import bench_router


def test_every_step_is_timed_and_the_index_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "_CHOICES", 20)
    monkeypatch.setattr(router, "_INDEX_BLOCKS", 20_000)
    rows = bench_router(runs=1, lengths=[64])
    assert [row.metric for row in rows] == [
        *("all", "hash", "look up", "choose", "reserve") * 2,
        "memory of a block",
    ]
    assert all(math.isfinite(row.median) and row.median > 0 for row in rows)
    assert rows[-1].median <= 120
