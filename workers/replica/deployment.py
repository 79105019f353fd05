"""The replica as Ray Serve sees it: Serve starts, checks, replaces, updates and drains it."""

import asyncio
import atexit
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import serve

from cluster.logs import configure_logs
from cluster.settings import EngineSettings, Settings
from workers.engine.launcher import Launcher
from workers.replica.engine_thread import EngineDied
from workers.replica.leader import Leader
from workers.replica.leaving import machine_leaves
from workers.replica.machine import check_model, with_shares_here
from workers.replica.shard import ShardLauncher
from workers.replica.step_engine import StepEngine


class Replica:
    """Hosts a leader. Serve calls all methods on one event loop, and sends it no requests."""

    async def __init__(  # type: ignore[misc] # Serve awaits it
        self, settings: dict[str, Any]
    ) -> None:
        """`settings` is a dump of the whole tree, with redis.url and the model's directory."""
        tree = with_shares_here(Settings(**settings))
        replica_id = serve.get_replica_context().replica_id.unique_id
        configure_logs(tree.log, process="replica", replica=replica_id)
        check_model(tree)
        # Here, where Ray knows which actor asks; the engine is made on another thread.
        group = ray.util.get_current_placement_group()
        assert group is not None, "every replica is deployed with one"
        shards = ShardLauncher(tree, group)
        leader = Leader(tree, replica_id, partial(make_engine, shards))
        await leader.start()
        self._leader = leader
        self._group = group
        self._leaving: asyncio.Task[None] | None = None
        atexit.register(_drain_at_exit, leader, asyncio.get_running_loop())

    async def check_health(self) -> None:
        """Raises EngineDied if the replica has to be replaced.

        One that is to lose a rank, since the rank's machine leaves, finishes its requests first.
        """
        if self._leader.is_drained:
            raise EngineDied("a machine with one of its ranks leaves the cluster")
        self._leader.check()
        if self._leaving is None and await asyncio.to_thread(machine_leaves, self._group):
            self._leaving = asyncio.create_task(self._leader.drain())

    async def __del__(self) -> None:
        # Serve's own hook for the end of a replica; it awaits it.
        await self._leader.drain()


def make_engine(
    launcher: Launcher,
    model_dir: Path,
    settings: EngineSettings,
    progress: Callable[[int, int], None],
) -> StepEngine:
    """The engine with all its ranks, made on the thread that will own it."""
    # Whoever only deploys needs no torch.
    from workers.engine.engine_start import start_engine  # noqa: PLC0415

    return start_engine(model_dir, settings, lambda: launcher, progress)


def _drain_at_exit(leader: Leader, loop: asyncio.AbstractEventLoop) -> None:
    """SIGTERM has Ray leave the process by way of atexit; loop and engine still run then."""
    if not leader.is_drained:
        asyncio.run_coroutine_threadsafe(leader.drain(), loop).result()
