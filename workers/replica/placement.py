"""Where the ranks of replicas go on a Ray cluster, and what is missing where they do not fit."""

from contextlib import suppress
from time import monotonic
from typing import Any, NamedTuple

import ray
from ray._private.state import available_resources_per_node
from ray._raylet import node_labels_match_selector  # type: ignore[attr-defined]
from ray.serve._private.constants import SERVE_NAMESPACE
from ray.util.placement_group import placement_group_table

from cluster.settings import ReplicaSettings, Settings
from workers.parallel.layout import ParallelLayout
from workers.replica.machine import layout_of

Bundle = dict[str, float]
"""Resources that are of one node, such as {"CPU": 2.0}."""


class Node(NamedTuple):
    """A machine of the cluster, as Ray sees it."""

    address: str
    cpus: float
    free_cpus: float
    labels: dict[str, str]

    def __str__(self) -> str:
        return f"{self.address} ({self.free_cpus:g} of {self.cpus:g} CPUs free)"


def live_nodes() -> list[Node]:
    """All nodes that Ray takes to be alive."""
    free = available_resources_per_node()  # type: ignore[no-untyped-call]
    return [
        Node(
            node["NodeManagerAddress"],
            node["Resources"].get("CPU", 0.0),
            free.get(node["NodeID"], {}).get("CPU", 0.0),
            node["Labels"],
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def bundles_of(settings: Settings, nodes: list[Node]) -> list[Bundle]:
    """What each replica reserves: a bundle for each pipeline stage, that of the leader first.

    Ranks of a stage exchange the most, so one node holds them all, unless no node is large enough;
    then each rank has a bundle of its own.
    """
    layout, each = layout_of(settings), settings.replica.num_cpus
    stage = each * layout.stage_size
    if any(node.cpus >= stage for node in _allowed(nodes, settings.replica)):
        return [{"CPU": stage}] * layout.pipeline
    return [{"CPU": each}] * layout.world_size


def bundle_of(rank: int, layout: ParallelLayout, num_bundles: int) -> int:
    """Which of its replica's bundles a rank is in."""
    return rank // (layout.world_size // num_bundles)


def waiting_replicas(app: str) -> dict[str, list[Bundle]]:
    """The bundles of each replica of Serve's application `app` that has no place yet.

    By the names of their actors, which Serve gives to their placement groups too.
    """
    table: dict[str, dict[str, Any]] = placement_group_table()
    return {
        group["name"]: list(group["bundles"].values())
        for group in table.values()
        if group["name"].startswith(f"SERVE_REPLICA::{app}#") and group["state"] in _WAITING
    }


_WAITING = ("PENDING", "RESCHEDULING")


def give_up_waiting(app: str) -> None:
    """End the replicas that have no place yet; Serve then gives back what is reserved for them."""
    for name in waiting_replicas(app):
        with suppress(ValueError):  # it is gone already
            ray.kill(ray.get_actor(name, namespace=SERVE_NAMESPACE))


class PlacementWatch:
    """Notices replicas that no machine has room for."""

    def __init__(self, replica: ReplicaSettings, app: str) -> None:
        """`replica` is what Serve's application `app` has just been deployed with."""
        self._replica = replica
        self._app = app
        self._waiting: set[str] = set()
        self._since = monotonic()

    def failure(self) -> str:
        """What is missing, if for replica.placement_timeout_s nothing has changed; else empty."""
        waiting = waiting_replicas(self._app)
        if set(waiting) != self._waiting:
            self._waiting, self._since = set(waiting), monotonic()
        if not waiting or monotonic() - self._since < self._replica.placement_timeout_s:
            return ""
        bundles = next(iter(waiting.values()))
        return f"no room for {len(waiting)}: {_shortage(bundles, self._replica, live_nodes())}"


def _shortage(bundles: list[Bundle], replica: ReplicaSettings, nodes: list[Node]) -> str:
    wanted = ", ".join(f"{bundle.get('CPU', 0.0):g}" for bundle in bundles)
    labels = ", ".join(f"{key}={value}" for key, value in replica.node_labels.items())
    where = f" on nodes with {labels}" if labels else ""
    found = "; ".join(map(str, _allowed(nodes, replica))) or "none"
    return f"each needs bundles of {wanted} CPUs{where}, and there are {found}"


def _allowed(nodes: list[Node], replica: ReplicaSettings) -> list[Node]:
    return [node for node in nodes if node_labels_match_selector(node.labels, replica.node_labels)]
