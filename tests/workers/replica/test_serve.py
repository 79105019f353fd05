"""Replicas on a real Ray Serve: replaced when killed, updated without a gap, drained."""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.internal.v1.replica_pb2_grpc import ReplicaServiceStub
from trunkline.v1 import sampling_pb2 as sampling

from cluster.redis_server import RedisServer
from cluster.registry import Registry, ReplicaRecord
from cluster.settings import EngineSettings, RedisSettings, ReplicaSettings, Settings
from tests.cluster.redis_fixture import running_redis
from workers.replica.rollout import deploy, rollout_status, scale, undeploy

MODEL = Path(__file__).parents[3] / "ops" / "models" / "demo_small"

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Cluster:
    """One Redis, one deployment, shared by the tests of this file in their order."""

    def __init__(self, server: RedisServer, redis: Redis) -> None:
        self.registry = Registry(redis, "test")
        self.settings = Settings(
            model=str(MODEL),
            redis=RedisSettings(url=server.url, namespace="test"),
            replica=ReplicaSettings(lease_s=1.0),
            engine=EngineSettings(kv_cache_bytes=16 * 1024 * 1024, num_threads=1),
        )

    async def until(self, enough: Callable[[list[ReplicaRecord]], bool]) -> list[ReplicaRecord]:
        async for records in self.registry.watch(period_s=0.05):
            if enough(records):
                return records
        raise AssertionError("the registry is watched without end")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(ray_cpus: int) -> AsyncIterator[Cluster]:
    # Not pytest's directory, whose path is too long for the name of a socket.
    with tempfile.TemporaryDirectory(prefix="tl-") as name:
        async with running_redis(Path(name)) as (server, redis):
            cluster = Cluster(server, redis)
            await asyncio.to_thread(deploy, cluster.settings)
            await cluster.until(lambda records: len(records) == 1)
            yield cluster
            await asyncio.to_thread(undeploy)
            assert await cluster.registry.replicas() == []


@asynccontextmanager
async def _stream(
    record: ReplicaRecord,
) -> AsyncIterator[grpc.aio.StreamStreamCall[internal.ConnectRequest, internal.ConnectResponse]]:
    async with grpc.aio.insecure_channel(record.address) as channel:
        stream = ReplicaServiceStub(channel).Connect()
        hello = internal.RouterHello(replica_id=record.replica_id, epoch=record.epoch)
        await stream.write(internal.ConnectRequest(hello=hello))
        yield stream


def _submit(handle: int, max_tokens: int) -> internal.ConnectRequest:
    submit = internal.Submit(
        handle=handle,
        prompt_token_ids=[5, 6, 7],
        stop=sampling.StopConditions(max_tokens=max_tokens, ignore_eos=True),
    )
    return internal.ConnectRequest(submits=[submit])


async def _tokens(
    stream: grpc.aio.StreamStreamCall[internal.ConnectRequest, internal.ConnectResponse],
) -> tuple[int, internal.RequestEnd]:
    """Read until a request ends; how many tokens came, and the end."""
    num_tokens = 0
    while True:
        frame = await stream.read()
        assert isinstance(frame, internal.ConnectResponse)
        num_tokens += sum(len(output.token_ids) for output in frame.outputs)
        if frame.ends:
            return num_tokens, frame.ends[0]


async def test_a_deployed_replica_serves_and_publishes_its_model(cluster: Cluster) -> None:
    [record] = await cluster.registry.replicas()
    card = await cluster.registry.model("demo_small")
    assert card is not None
    assert card.max_model_len > 0
    async with _stream(record) as stream:
        await stream.write(_submit(1, max_tokens=8))
        num_tokens, end = await _tokens(stream)
    assert num_tokens == 8
    assert end.HasField("finished")
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"http://{record.metrics_address}/metrics")
    assert 'trunkline_replica_generated_tokens_total{model="demo_small"' in answer.text


async def test_a_killed_leader_is_replaced_under_a_new_epoch(cluster: Cluster) -> None:
    [old] = await cluster.registry.replicas()
    os.kill(old.pid, signal.SIGKILL)
    [new] = await cluster.until(lambda records: [r.pid for r in records] not in ([], [old.pid]))
    assert new.epoch > old.epoch
    assert not psutil.pid_exists(old.pid) or (
        psutil.Process(old.pid).status() == psutil.STATUS_ZOMBIE
    )


async def test_a_leader_told_to_terminate_finishes_its_request_first(cluster: Cluster) -> None:
    [old] = await cluster.registry.replicas()
    async with _stream(old) as stream:
        await stream.write(_submit(1, max_tokens=400))
        await stream.read()
        os.kill(old.pid, signal.SIGTERM)
        num_tokens, end = await _tokens(stream)
    assert num_tokens == 400
    assert end.HasField("finished")
    await cluster.until(lambda records: len(records) == 1 and records[0].pid != old.pid)


async def test_a_new_version_serves_before_the_old_one_is_drained(cluster: Cluster) -> None:
    [old] = await cluster.registry.replicas()
    # It registers a moment before Serve knows that it has started, and could drain it.
    while not (await asyncio.to_thread(rollout_status)).running:
        await cluster.until(bool)
    async with _stream(old) as stream:
        await asyncio.to_thread(deploy, cluster.settings)
        await cluster.until(lambda records: {r.pid for r in records} > {old.pid})
        await stream.write(_submit(1, max_tokens=300))
        _, end = await _tokens(stream)
    # Either the old one was not draining yet, or it said so and the router goes to the new one.
    assert end.HasField("finished") or end.failed.cause == internal.Failed.CAUSE_REFUSED
    await cluster.until(lambda records: len(records) == 1 and records[0].pid != old.pid)


async def test_replicas_are_added_and_drained_without_replacing_others(cluster: Cluster) -> None:
    [first] = await cluster.registry.replicas()
    await asyncio.to_thread(scale, 2)
    two = await cluster.until(lambda records: len(records) == 2)
    assert first in two
    await asyncio.to_thread(scale, 1)
    [left] = await cluster.until(lambda records: len(records) == 1)
    assert left in two


async def test_a_model_that_cannot_be_loaded_is_told_and_the_old_replica_stays(
    cluster: Cluster,
) -> None:
    before = await cluster.registry.replicas()
    broken = cluster.settings.model_copy(update={"model": str(MODEL.parent)})
    await asyncio.to_thread(deploy, broken)
    while not (failure := (await asyncio.to_thread(rollout_status)).failure):
        await cluster.until(bool)
    assert "config.json" in failure
    assert await cluster.registry.replicas() == before
