"""What a replica's metrics endpoint tells."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.workers.replica.fake_engine import FakeEngine
from workers.replica.metrics import ReplicaMetrics


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
