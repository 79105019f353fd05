"""The bench of fairness on a cluster: it measures what it says, and nothing fails on the way."""

import pytest

from ops.bench.fairness import GOAL, FairnessWork, bench_fairness


async def test_each_queue_has_its_rows_from_real_requests() -> None:
    rows = await bench_fairness("demo-small", FairnessWork(3, 16, 4), ["fcfs"], runs=1)
    assert {row.engine for row in rows} == {"queue fcfs"}
    assert len(rows) == 6
    for percentile, (alone, beside, share) in ((50, rows[:3]), (95, rows[3:])):
        assert all(f"p{percentile}" in row.metric for row in (alone, beside, share))
        assert (alone.unit, beside.unit, share.unit) == ("ms", "ms", "x")
        assert share.median == pytest.approx(beside.median / alone.median)
    assert f"goal {GOAL:g}" in rows[-1].metric


async def test_a_queue_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="got lifo"):
        await bench_fairness("demo-small", FairnessWork(1, 16, 4), ["fair", "lifo"], runs=1)
