"""Where the ranks of replicas go on a Ray cluster, and what is missing where they do not fit."""

from collections.abc import Iterable
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
    resources: Bundle
    free: Bundle
    labels: dict[str, str]

    def has(self, bundle: Bundle) -> bool:
        """Whether it is large enough, were it empty."""
        return all(self.resources.get(kind, 0.0) >= amount for kind, amount in bundle.items())

    def describe(self, kinds: Iterable[str]) -> str:
        """It, and what is free there of these kinds of resources."""
        free = (
            f"{self.free.get(kind, 0.0):g} of {self.resources.get(kind, 0.0):g} {kind}s free"
            for kind in kinds
        )
        return f"{self.address} ({', '.join(free)})"


def live_nodes() -> list[Node]:
    """All nodes that Ray takes to be alive."""
    free = available_resources_per_node()  # type: ignore[no-untyped-call]
    return [
        Node(
            node["NodeManagerAddress"],
            node["Resources"],
            free.get(node["NodeID"], {}),
            node["Labels"],
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def with_device(settings: Settings, nodes: list[Node]) -> Settings:
    """With the device of all ranks named: GPUs, if none is asked for and there are any."""
    if settings.engine.device != "auto":
        return settings
    found = any(node.has({"GPU": 1.0}) for node in _allowed(nodes, settings.replica))
    engine = settings.engine.model_copy(update={"device": "cuda" if found else "cpu"})
    return settings.model_copy(update={"engine": engine})


def resources_of_rank(settings: Settings) -> Bundle:
    """What each rank reserves. Ray shows a process the GPU that it reserves, and no other."""
    cpus = {"CPU": settings.replica.num_cpus}
    return cpus | {"GPU": 1.0} if settings.engine.device == "cuda" else cpus


def actor_options(settings: Settings) -> dict[str, float]:
    """The same, as Ray's actors are told."""
    reserved = resources_of_rank(settings)
    return {"num_cpus": reserved["CPU"], "num_gpus": reserved.get("GPU", 0.0)}


def bundles_of(settings: Settings, nodes: list[Node]) -> list[Bundle]:
    """What each replica reserves: a bundle for each pipeline stage, that of the leader first.

    Ranks of a stage exchange the most, so one node holds them all, unless no node is large enough;
    then each rank has a bundle of its own.
    """
    layout, each = layout_of(settings), resources_of_rank(settings)
    stage = {kind: amount * layout.stage_size for kind, amount in each.items()}
    if any(node.has(stage) for node in _allowed(nodes, settings.replica)):
        return [stage] * layout.pipeline
    return [each] * layout.world_size


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
    kinds = sorted({kind for bundle in bundles for kind in bundle})
    wanted = ", ".join(" and ".join(f"{b[kind]:g} {kind}s" for kind in kinds) for b in bundles)
    labels = ", ".join(f"{key}={value}" for key, value in replica.node_labels.items())
    where = f" on nodes with {labels}" if labels else ""
    found = "; ".join(node.describe(kinds) for node in _allowed(nodes, replica)) or "none"
    return f"each needs bundles of {wanted}{where}, and there are {found}"


def _allowed(nodes: list[Node], replica: ReplicaSettings) -> list[Node]:
    return [node for node in nodes if node_labels_match_selector(node.labels, replica.node_labels)]
