"""Replicas die, hang and leave while they answer: no client sees anything of it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import pytest
from trunkline import AsyncClient, RetryPolicy

from tests.chaos.extra_router import ExtraRouter
from tests.chaos.settings import SETTINGS
from tests.chaos.streams import MAX_TOKENS, NUM_STREAMS, Streams, undisturbed, wishes
from tests.e2e.cluster import Cluster, serving
from tests.e2e.patience import eventually

Harm = Callable[[Cluster], Awaitable[None]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two replicas, which compute in float32: there, tokens do not depend on the batch."""
    with serving("demo", SETTINGS) as running:
        yield running


@asynccontextmanager
async def streaming(cluster: Cluster, *more: str) -> AsyncIterator[Streams]:
    """Streams at their middle; at the end they have to bring what they would have undisturbed."""
    await eventually(lambda: cluster.has_ready(2), "both replicas serve")
    expected = await undisturbed(cluster.grpc)
    # Without other routers, whatever is tried again, the router does it.
    retry = RetryPolicy(max_attempts=8 if more else 1)
    async with AsyncClient([cluster.grpc, *more], retry=retry) as client:
        streams = Streams(client)
        running = asyncio.create_task(streams.run())
        midway = asyncio.create_task(streams.midway.wait())
        await asyncio.wait({running, midway}, return_when=asyncio.FIRST_COMPLETED)
        assert not running.done(), "streams are too short to be disturbed"
        yield streams
        found = await running
    assert [len(found), *map(len, found)] == [NUM_STREAMS, *(w.get("n", 1) for w in wishes())]
    assert {len(tokens) for samples in found for tokens in samples.values()} == {MAX_TOKENS}
    assert found == expected


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
