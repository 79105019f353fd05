"""`trunkline bench router --figures load`: a router in its own process, between two others."""

import math

from ops.bench.router_load.bench import Paced, Sizes, bench_load


def test_all_figures_of_both_protocols_are_measured() -> None:
    rows = bench_load(1, Sizes(paced=(Paced(2, 5, 4),), flooded={2: 4}, short_requests=4))
    rows = [row for row in rows if row.engine == "trunkline"]
    assert all(math.isfinite(row.median) for row in rows)
    for protocol in ("grpc", "http"):
        metrics = [(r.work, r.metric) for r in rows if r.work.startswith(f"{protocol}, ")]
        assert metrics[:5] == [
            (f"{protocol}, 2 streams", metric)
            for metric in (
                "added TTFT p50",
                "added TTFT p99",
                "token messages a core",
                "tokens a message",
                "CPU of a stream of 64",
            )
        ]
        flooded = f"{protocol}, 2 streams, no pause between steps"
        assert metrics[5:7] == [(flooded, "tokens a core"), (flooded, "tokens a message")]
        assert metrics[7] == (f"{protocol}, answer of one token", "CPU")
    assert any(row.work == "grpc, tokenize" for row in rows)
    assert all(row.median >= 1 for row in rows if row.metric == "tokens a message")
