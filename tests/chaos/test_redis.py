"""The cluster's Redis dies, hangs and forgets while replicas answer: no client sees anything of it,
and in the end everything is known again."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import psutil
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from cluster.redis_client import connect
from tests.chaos.healing import heals
from tests.chaos.streams import streaming
from tests.e2e.cluster import Cluster
from tests.e2e.patience import eventually


async def _kill(cluster: Cluster) -> None:
    (await _redis_process(cluster)).kill()


async def _restart(cluster: Cluster) -> None:
    """In order; `trunkline serve` starts another."""
    async with connect(cluster.run.redis_url) as redis:
        await redis.shutdown(nosave=True)


async def _flush(cluster: Cluster) -> None:
    async with connect(cluster.run.redis_url) as redis:
        await redis.flushall()


@pytest.mark.parametrize("harm", [_kill, _restart, _flush])
async def test_redis_forgets_everything(
    cluster: Cluster, harm: Callable[[Cluster], Awaitable[None]]
) -> None:
    async with streaming(cluster):
        known = {record.member for record in await cluster.replicas()}
        async with _marked(cluster) as is_forgotten:
            await harm(cluster)
            await eventually(is_forgotten, "Redis has forgotten everything")
    await heals(cluster)
    assert {record.member for record in await cluster.replicas()} == known


async def test_redis_hangs(cluster: Cluster) -> None:
    """All streams end while it does."""
    redis = await _redis_process(cluster)
    try:
        async with streaming(cluster):
            known = {record.member for record in await cluster.replicas()}
            redis.suspend()
    finally:
        redis.resume()
    await heals(cluster)
    assert {record.member for record in await cluster.replicas()} == known


@asynccontextmanager
async def _marked(cluster: Cluster) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
    """Tells whether Redis answers and has forgotten what it knew before."""
    mark = f"{cluster.run.namespace}:chaos"
    async with connect(cluster.run.redis_url) as redis:
        await redis.set(mark, "known")
        yield lambda: _has_forgotten(redis, mark)


async def _has_forgotten(redis: Redis, mark: str) -> bool:
    try:
        return not await redis.exists(mark)
    except (RedisError, OSError):
        return False


async def _redis_process(cluster: Cluster) -> psutil.Process:
    async with connect(cluster.run.redis_url) as redis:
        return psutil.Process((await redis.info("server"))["process_id"])
