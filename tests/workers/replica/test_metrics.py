"""What a replica's metrics endpoint tells."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.workers.replica.fake_engine import FakeEngine
from workers.engine.tier_stats import TierStats
from workers.replica.metrics import ReplicaMetrics


def test_tiers_are_told_apart() -> None:
    engine = FakeEngine()
    engine.stats.hit_tokens = 100
    engine.stats.tiers = TierStats(host_hit_tokens=30, redis_hit_tokens=20, values_corrupt=1)
    address, stop = ReplicaMetrics("m", "r").serve("127.0.0.1", lambda: engine.stats, engine.load)
    try:
        page = httpx.get(f"http://{address}/metrics").text
    finally:
        stop()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    hits = families["trunkline_replica_tier_hit_tokens"].samples
    assert {s.labels["tier"]: s.value for s in hits} == {"device": 50, "host": 30, "redis": 20}
    failures = families["trunkline_replica_tier_failures"].samples
    assert {s.labels["what"]: s.value for s in failures}["value_corrupt"] == 1


def test_each_experts_rows_are_told() -> None:
    engine = FakeEngine()
    engine.stats.expert_rows = {1: [5, 0], 3: [2, 4]}
    address, stop = ReplicaMetrics("m", "r").serve("127.0.0.1", lambda: engine.stats, engine.load)
    try:
        page = httpx.get(f"http://{address}/metrics").text
    finally:
        stop()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    told = {
        (sample.labels["layer"], sample.labels["expert"]): sample.value
        for sample in families["trunkline_replica_expert_rows"].samples
    }
    assert told == {("1", "0"): 5, ("1", "1"): 0, ("3", "0"): 2, ("3", "1"): 4}
