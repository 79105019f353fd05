"""Small clusters, so that a simulation takes a second."""

from collections.abc import Sequence

from ops.bench.workloads.named import sessions
from ops.bench.workloads.session import Session
from ops.simulate.profile import DEFAULT
from ops.simulate.report import at_rate
from ops.simulate.simulation import Cluster

PROFILE = DEFAULT.model_copy(update={"num_blocks": 2048})


def cluster(replicas: int, routers: int = 1) -> Cluster:
    """Replicas with room for 32,768 tokens."""
    return Cluster(profile=PROFILE, replicas=replicas, routers=routers)


def traffic(name: str, requests: int, rate: float, seed: int = 0) -> Sequence[Session]:
    """A workload at a rate of requests per second."""
    return at_rate(sessions(name, str(seed), requests), rate)
