"""The lease on real Redis: entered, renewed, left, and entered again when Redis forgets."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from redis.asyncio import Redis

from cluster.registry import Registry, ReplicaRecord
from tests.cluster.redis_fixture import running_redis
from tests.workers.replica.fake_engine import CARD
from workers.replica.lease import Lease, claim_epoch

LEASE_S = 0.3


def _record(epoch: int) -> ReplicaRecord:
    return ReplicaRecord(replica_id="r", epoch=epoch, model=CARD.name, address="127.0.0.1:1")


async def _until(registry: Registry, expected: Callable[[list[ReplicaRecord]], bool]) -> None:
    async for records in registry.watch(period_s=0.02):
        if expected(records):
            return


async def _started(redis: Redis, epoch: int) -> tuple[Registry, asyncio.Task[None]]:
    registry = Registry(redis, "test")
    lease = Lease(registry, _record(epoch), CARD, LEASE_S)
    return registry, asyncio.create_task(lease.run())


async def test_a_replica_is_entered_with_its_model_and_leaves_at_the_end(tmp_path: Path) -> None:
    async with running_redis(tmp_path) as (_, redis):
        registry, running = await _started(redis, await claim_epoch(Registry(redis, "test")))
        await _until(registry, lambda records: len(records) == 1)
        assert await registry.model(CARD.name) == CARD
        running.cancel()
        await asyncio.wait([running])
        assert await registry.replicas() == []


async def test_a_lease_outlasts_its_length_while_it_is_renewed(tmp_path: Path) -> None:
    async with running_redis(tmp_path) as (_, redis):
        registry, running = await _started(redis, 1)
        await _until(registry, lambda records: len(records) == 1)
        first_end = await redis.zscore("test:replicas", "r@1")
        assert first_end is not None
        while (end := await redis.zscore("test:replicas", "r@1")) == first_end:
            await _until(registry, lambda records: len(records) == 1)
        assert end is not None
        assert end > first_end
        running.cancel()
        await asyncio.wait([running])


async def test_a_redis_that_has_forgotten_everything_is_told_again(tmp_path: Path) -> None:
    async with running_redis(tmp_path) as (server, redis):
        registry, running = await _started(redis, 1)
        await _until(registry, lambda records: len(records) == 1)
        await server.stop()
        await server.start()
        await _until(registry, lambda records: len(records) == 1)
        # The card follows the record.
        while await registry.model(CARD.name) is None:
            await _until(registry, lambda records: len(records) == 1)
        running.cancel()
        await asyncio.wait([running])


async def test_epochs_grow_even_over_a_restart_of_redis(tmp_path: Path) -> None:
    async with running_redis(tmp_path) as (server, redis):
        registry = Registry(redis, "test")
        epochs = [await registry.next_epoch() for _ in range(20)]
        await server.stop()
        claim = asyncio.create_task(claim_epoch(registry))
        await server.start()
        epochs.append(await claim)
        assert epochs == sorted(set(epochs))


async def test_a_lease_that_is_not_renewed_ends(tmp_path: Path) -> None:
    async with running_redis(tmp_path) as (_, redis):
        registry = Registry(redis, "test")
        assert await registry.renew(_record(1), LEASE_S)
        await _until(registry, lambda records: not records)
        assert await registry.renew(_record(1), LEASE_S)
        assert not await registry.renew(_record(1), LEASE_S)
