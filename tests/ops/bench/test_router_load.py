"""`trunkline bench router --figures load`: a router in its own process, between two others."""

import math

from ops.bench.router_load.bench import BARE, bench_load
from ops.bench.router_load.turn import Flooded, Paced, Sizes


def test_all_figures_of_both_protocols_are_measured() -> None:
    sizes = Sizes(paced=(Paced(2, 5, 4),), flooded=(Flooded(2, 64),), short_requests=4)
    rows = bench_load(1, (), sizes)
    assert all(math.isfinite(row.median) for row in rows)
    assert {row.engine for row in rows} == {BARE, "trunkline"}
    for protocol in ("grpc", "http"):
        metrics = [
            (r.work.removeprefix(f"{protocol}, "), r.metric)
            for r in rows
            if r.engine == "trunkline" and r.work.startswith(f"{protocol}, ")
        ]
        flooded, short = "2 streams, no pause between steps", ("answer of one token", "CPU")
        assert metrics == [
            ("2 streams", "TTFT p50"),
            ("2 streams", "TTFT p99"),
            ("2 streams", "token messages a core"),
            ("2 streams", "tokens a message"),
            ("2 streams", "CPU of a stream of 64"),
            ("2 streams", "added TTFT p50"),
            ("2 streams", "added TTFT p99"),
            (flooded, "tokens a core"),
            (flooded, "tokens a message"),
            *((short, ("tokenize", "CPU")) if protocol == "grpc" else (short,)),
        ]
    assert all(row.median >= 1 for row in rows if row.metric == "tokens a message")
