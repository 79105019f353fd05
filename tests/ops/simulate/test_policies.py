"""What the default policy must hold beside one that knows all, from cold caches on.

Larger clusters and other traffic are in docs/simulate.md.
"""

from functools import cache

from ops.simulate.figures import simulated_figures
from ops.simulate.simulation import ORACLE, simulate
from tests.ops.simulate.cluster_fixture import cluster, traffic

REPLICAS = 32


@cache
def found(policy: str, routers: int = 1) -> dict[str, float]:
    """Figures of a skewed workload at about four fifths of what the replicas can do."""
    outcome = simulate(cluster(REPLICAS, routers), policy, traffic("shared", 1200, 200.0, 1), 1)
    return {metric.name: value for metric, value in simulated_figures(outcome).items()}


def test_prefix_answers_within_a_tenth_of_the_time_of_a_policy_that_knows_all() -> None:
    assert found("prefix")["TTFT mean"] <= 1.1 * found(ORACLE)["TTFT mean"]


def test_affinity_makes_no_replica_hot() -> None:
    assert found("prefix")["busiest replica"] <= 1.3


def test_several_routers_find_as_much_as_one() -> None:
    three = found("prefix", routers=3)
    assert abs(found("prefix")["cached tokens"] - three["cached tokens"]) <= 3.0


def test_prefixes_are_found_where_load_alone_would_not_look() -> None:
    blind = found("least_loaded")
    assert found("prefix")["cached tokens"] >= blind["cached tokens"] + 15
    assert found("prefix")["TTFT p50"] <= 0.5 * blind["TTFT p50"]
