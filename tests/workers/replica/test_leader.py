"""A leader whose engine is of no more use leaves at once, whether it computes or not."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from redis.asyncio import Redis
from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.internal.v1.replica_pb2_grpc import ReplicaServiceStub

from cluster.prefix.events import CacheChange, PrefixKeys
from cluster.registry import Registry
from cluster.settings import RedisSettings, ReplicaSettings, Settings
from tests.redis_server import RedisServer
from tests.workers.replica.fake_engine import FakeEngine
from workers.replica.engine_thread import EngineDied
from workers.replica.leader import Leader

Stream = grpc.aio.StreamStreamCall[internal.ConnectRequest, internal.ConnectResponse]


@pytest.fixture
def settings(redis_server: RedisServer, namespace: str) -> Settings:
    return Settings(
        model="fake",
        redis=RedisSettings(url=redis_server.url, namespace=namespace),
        replica=ReplicaSettings(max_step_s=0.1, drain_timeout_s=1.0),
    )


@pytest.fixture
async def led(settings: Settings) -> AsyncIterator[tuple[Leader, FakeEngine]]:
    engine = FakeEngine()
    leader = Leader(settings, "r", lambda *_: engine)
    await leader.start()
    yield leader, engine
    engine.gate.set()
    await leader.drain()


@pytest.fixture
async def stream(
    led: tuple[Leader, FakeEngine], redis: Redis, settings: Settings
) -> AsyncIterator[Stream]:
    """That of a router, which has read the hello."""
    async for records in Registry(redis, settings.redis.namespace).watch(period_s=0.01):
        if records:
            break
    async with grpc.aio.insecure_channel(records[0].address) as channel:
        stream = ReplicaServiceStub(channel).Connect()
        hello = internal.RouterHello(replica_id="r", epoch=records[0].epoch)
        await stream.write(internal.ConnectRequest(hello=hello))
        await stream.read()
        yield stream


async def _end_of(stream: Stream) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as end:
        await _read_on(stream)
    return end.value.code()


async def _read_on(stream: Stream) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


async def test_ranks_lost_while_nothing_is_computed_end_the_replica(
    led: tuple[Leader, FakeEngine], stream: Stream, redis: Redis, settings: Settings
) -> None:
    leader, engine = led
    engine.loss = RuntimeError("rank 1 is lost")
    assert await _end_of(stream) is grpc.StatusCode.UNAVAILABLE
    async for records in Registry(redis, settings.redis.namespace).watch(period_s=0.01):
        if not records:
            break
    with pytest.raises(EngineDied, match="rank 1 is lost"):
        leader.check()
    assert engine.num_dumps == 0
    # For whoever comes next, before the process ends.
    assert await asyncio.to_thread(engine.closed.wait, 30.0)


async def test_a_step_that_hangs_ends_the_replica_and_the_stacks_of_all_ranks_are_told(
    led: tuple[Leader, FakeEngine], stream: Stream
) -> None:
    leader, engine = led
    engine.gate.clear()
    submit = internal.Submit(handle=1, prompt_token_ids=[1])
    await stream.write(internal.ConnectRequest(submits=[submit]))
    assert await _end_of(stream) is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(EngineDied, match="a step has been running"):
        leader.check()
    assert engine.num_dumps == 1


async def test_what_the_engine_caches_stands_in_redis_until_the_replica_leaves(
    led: tuple[Leader, FakeEngine], stream: Stream, redis: Redis, settings: Settings
) -> None:
    leader, engine = led
    blocks = {bytes([i]) * 16 for i in range(3)}
    for block in blocks:
        engine.cache.note(CacheChange.STORED, block)
    await stream.write(
        internal.ConnectRequest(submits=[internal.Submit(handle=1, prompt_token_ids=[1])])
    )
    (record,) = await Registry(redis, settings.redis.namespace).replicas()
    keys = PrefixKeys.of(settings.redis.namespace, record.member)
    async with asyncio.timeout(30.0):
        while await redis.smembers(keys.resident) != blocks:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.005)
    await leader.drain()
    assert await redis.exists(*keys) == 0


def test_settings_without_redis_are_refused() -> None:
    with pytest.raises(ValueError, match=r"redis\.url"):
        Leader(Settings(model=str(Path())), "r", lambda *_: FakeEngine())
