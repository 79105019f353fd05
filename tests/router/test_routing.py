"""Requests go to the replicas with the least to do, by their word and by what was sent since."""

import asyncio

from tests.router.conftest import ReplicaMaker
from tests.router.fake_replica import FakeReplica, Script
from tests.router.harness import Client, eventually


async def test_a_busy_replica_is_spared(
    client: Client, replica: FakeReplica, make_replica: ReplicaMaker
) -> None:
    other = await make_replica("replica-1")
    other.load.running_sequences = 10
    await client.until_ready(2)
    for _ in range(5):
        await client.generate()
    assert (len(replica.submits), len(other.submits)) == (5, 0)


async def test_a_burst_is_spread_before_the_next_report(
    client: Client, replica: FakeReplica, make_replica: ReplicaMaker
) -> None:
    replicas = [replica, await make_replica("replica-1"), await make_replica("replica-2")]
    for each in replicas:
        each.script = Script(pause_after=1)
    await client.until_ready(3)
    calls = [asyncio.create_task(client.generate()) for _ in range(30)]
    await eventually(lambda: _have_all(replicas, 30))
    assert [len(each.submits) for each in replicas] == [10, 10, 10]
    for each in replicas:
        each.resume.set()
    await asyncio.gather(*calls)


async def _have_all(replicas: list[FakeReplica], count: int) -> bool:
    return sum(len(each.submits) for each in replicas) == count
