"""Replicas die, hang and leave while they answer: no client sees anything of it."""

import asyncio
import os
import signal
from contextlib import suppress

from tests.chaos.extra_router import ExtraRouter
from tests.chaos.settings import SETTINGS
from tests.chaos.streams import streaming
from tests.e2e.cluster import Cluster
from tests.e2e.patience import eventually


async def test_a_leader_is_killed(cluster: Cluster) -> None:
    async with streaming(cluster):
        lost = (await cluster.replicas())[0]
        os.kill(lost.pid, signal.SIGKILL)
    await eventually(lambda: cluster.has_replaced(lost.pid), "the replica is replaced")


async def test_a_leader_hangs(cluster: Cluster) -> None:
    """Its connections stay, but nothing comes by them."""
    async with streaming(cluster):
        lost = (await cluster.replicas())[0]
        os.kill(lost.pid, signal.SIGSTOP)
    # Serve would find out too, but later.
    with suppress(ProcessLookupError):
        os.kill(lost.pid, signal.SIGKILL)
    await eventually(lambda: cluster.has_replaced(lost.pid), "the replica is replaced")


async def test_a_router_is_killed(cluster: Cluster) -> None:
    """The SDK knows two of them, and each has some of its streams."""
    async with ExtraRouter.running(cluster) as extra, streaming(cluster, extra.address):
        assert await extra.num_in_flight() > 0
        extra.kill()


async def test_replicas_drain(cluster: Cluster) -> None:
    """All are replaced by one: what they cannot finish in time they hand back."""
    replica = SETTINGS["replica"] | {"count": 1}
    with cluster.changed_settings({"replica": replica}):
        async with streaming(cluster):
            done = await asyncio.to_thread(cluster.command, "rollout")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(await cluster.replicas()) == 1
