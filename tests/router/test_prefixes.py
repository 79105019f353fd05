"""A router knows what its replicas have cached, and forgets those that leave."""

import os

from redis.asyncio import Redis

from cluster.prefix.block_log import BlockLog
from cluster.prefix.events import Update, joined
from cluster.registry import Registry
from tests.router.conftest import ReplicaMaker
from tests.router.fake_replica import FakeReplica
from tests.router.harness import Client, eventually, running_router

BLOCKS = [os.urandom(16) for _ in range(5)]


def _log(redis: Redis, namespace: str, replica: FakeReplica) -> BlockLog:
    return BlockLog(redis, namespace, replica.record.member, 60.0)


async def _until_metric(client: Client, name: str, value: float, **labels: str) -> None:
    async def is_so() -> bool:
        return client.metric(f"trunkline:{name}", **labels) == value

    await eventually(is_so)


async def test_a_new_router_knows_at_once_and_then_follows(
    redis: Redis, namespace: str, registry: Registry, make_replica: ReplicaMaker
) -> None:
    one, other = await make_replica("one"), await make_replica("other")
    log = _log(redis, namespace, one)
    await log.rewrite(1, BLOCKS[:3], [])
    await _log(redis, namespace, other).rewrite(1, BLOCKS[2:], [])
    async with running_router(registry) as client:
        await _until_metric(client, "prefix_index_blocks", 5, model="tiny")
        await _until_metric(client, "prefix_index_replicas", 2, model="tiny")
        assert await log.append(Update(2, removed=joined(BLOCKS[:2])))
        await _until_metric(client, "prefix_index_blocks", 3, model="tiny")
        assert client.metric("trunkline:prefix_index_gaps_total") == 0
        assert client.metric("trunkline:prefix_index_resyncs_total") == 2
        await other.unregister()
        await _until_metric(client, "prefix_index_blocks", 1, model="tiny")
        await _until_metric(client, "prefix_index_replicas", 1, model="tiny")


async def test_missing_updates_are_counted_and_made_up_for(
    redis: Redis, namespace: str, client: Client, replica: FakeReplica
) -> None:
    log = _log(redis, namespace, replica)
    await log.rewrite(1, BLOCKS[:1], [])
    await _until_metric(client, "prefix_index_blocks", 1, model="tiny")
    async with redis.pipeline(transaction=True) as together:
        # As if both had come between two looks, and the stream had been cut in between.
        together.sadd(f"{namespace}:resident:{replica.record.member}", *BLOCKS[1:])
        together.set(f"{namespace}:blocks-number:{replica.record.member}", 3)
        together.xadd(
            f"{namespace}:blocks:{replica.record.member}", {"stored": BLOCKS[4]}, id="3-0"
        )
        await together.execute()
    await _until_metric(client, "prefix_index_blocks", 5, model="tiny")
    assert client.metric("trunkline:prefix_index_gaps_total") == 1
