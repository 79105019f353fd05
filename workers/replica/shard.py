"""A replica's ranks besides the leader: Ray actors in the leader's placement group."""

from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.logs import configure_logs
from cluster.node_host import node_host
from cluster.settings import Settings
from workers.engine.launcher import RankNotStarted
from workers.replica.machine import check_model, layout_of
from workers.replica.placement import actor_options, bundle_of

_GONE_S = 5.0
"""For a killed actor's process to end."""


class Shard:
    """Hosts one rank, which takes the whole process."""

    def __init__(self) -> None:
        # Takes its time, while the leader has imports of its own to do.
        from workers.engine.rank_process import run_rank  # noqa: PLC0415 - nor is it for the leader

        self._run_rank = run_rank

    def run(self, settings: dict[str, Any], rank: int, address: str, token: str) -> None:
        """Be the rank; `settings` is a dump of the replica's whole tree.

        Raises FileNotFoundError if the model is not on this machine.
        """
        tree = Settings(**settings)
        configure_logs(tree.log, process="shard", rank=str(rank))
        check_model(tree)
        self._run_rank(address, token, rank, node_host(tree))


class ShardLauncher:
    """A Launcher. Shards are owned by the process that launches them, and end with it."""

    def __init__(self, settings: Settings, group: PlacementGroup) -> None:
        """Starts the processes. `group` is the one that the leader runs in."""
        self.node = node_host(settings)
        self._settings = settings.model_dump(mode="json")
        layout = layout_of(settings)
        self._shards: dict[int, Any] = {}
        self._runs: dict[Any, int] = {}
        for rank in range(1, layout.world_size):
            strategy = PlacementGroupSchedulingStrategy(
                placement_group=group,
                placement_group_bundle_index=bundle_of(rank, layout, group.bundle_count),
            )
            actor = ray.remote(Shard).options(
                scheduling_strategy=strategy, **actor_options(settings)
            )
            self._shards[rank] = actor.remote()

    def launch(self, rank: int, address: str, token: str) -> None:
        """See Launcher."""
        run = self._shards[rank].run.remote(self._settings, rank, address, token)
        self._runs[run] = rank

    def check(self) -> None:
        """See Launcher."""
        ended, _ = ray.wait(list(self._runs), timeout=0)
        for run in ended:
            try:
                ray.get(run)
                why = "its process is free"
            except RayTaskError as error:
                why = f"{type(error.cause).__name__}: {error.cause}"
            except RayError as error:
                why = " ".join(str(error).split())
            raise RankNotStarted(f"rank {self._runs[run]} did not start: {why}")

    def kill(self) -> None:
        """See Launcher."""
        for shard in self._shards.values():
            ray.kill(shard)
        if self._runs:
            ray.wait(list(self._runs), num_returns=len(self._runs), timeout=_GONE_S)
