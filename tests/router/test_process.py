"""The router as its own process: what it says, how it ends."""

import asyncio
import json
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.asyncio import Redis
from trunkline.v1 import inference_pb2 as pb
from trunkline.v1.inference_pb2_grpc import InferenceStub

from cluster.model_card import ModelCard
from cluster.registry import Registry
from tests.redis_server import RedisServer
from tests.router.fake_replica import FakeReplica, Script
from tests.router.harness import detail_of, tokens_of

REQUEST = pb.GenerateRequest(prompt="x")


class RouterProcess:
    """A running router."""

    def __init__(self, process: Process, addresses: dict[str, str]) -> None:
        self.process = process
        self.addresses = addresses
        self.channel = grpc.aio.insecure_channel(addresses["grpc"])
        self.stub = InferenceStub(self.channel)

    async def until_health_is(self, serving: bool) -> None:
        """Wait for what health checks are told."""
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        wanted = health_pb2.HealthCheckResponse.ServingStatus.Value(
            "SERVING" if serving else "NOT_SERVING"
        )
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        while (await watch.read()).status != wanted:
            pass
        watch.cancel()

    async def get(self, path: str) -> int:
        """Status of a GET over HTTP."""
        async with httpx.AsyncClient(base_url=f"http://{self.addresses['http']}") as client:
            return (await client.get(path)).status_code


@asynccontextmanager
async def router_process(
    redis: RedisServer, namespace: str, **router: Any
) -> AsyncIterator[RouterProcess]:
    settings = {
        "redis": {"url": redis.url, "namespace": namespace},
        "router": {"grpc_port": 0, "http_port": 0} | router,
        "log": {"format": "json"},
    }
    process = await start("--config-json", json.dumps(settings))
    assert process.stdout is not None
    running = RouterProcess(process, json.loads(await process.stdout.readline()))
    try:
        yield running
    finally:
        await running.channel.close()
        if process.returncode is None:
            process.kill()
        await process.wait()


async def start(*arguments: str) -> Process:
    command = (sys.executable, "-m", "router.main", *arguments)
    return await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server that the test starts itself."""
    server = RedisServer()
    yield server
    server.remove()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains(
    redis_server: RedisServer, namespace: str, replica: FakeReplica, number: signal.Signals
) -> None:
    replica.script = Script(pause_after=2)
    async with router_process(redis_server, namespace) as router:
        await router.until_health_is(serving=True)
        messages = aiter(router.stub.Generate(REQUEST))
        first = await anext(messages)
        router.process.send_signal(number)
        await router.until_health_is(serving=False)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(router.stub.Generate(REQUEST)))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert detail_of(caught.value).reason == "SHUTTING_DOWN"
        assert (await router.get("/healthz"), await router.get("/readyz")) == (200, 503)
        replica.resume.set()
        assert tokens_of([first, *[m async for m in messages]]) == [10, 11, 12, 13]
        assert await router.process.wait() == 0


async def test_draining_ends_after_its_timeout(
    redis_server: RedisServer, namespace: str, replica: FakeReplica
) -> None:
    replica.script = Script(pause_after=2)
    async with router_process(redis_server, namespace, drain_timeout_s=0.1) as router:
        await router.until_health_is(serving=True)
        messages = aiter(router.stub.Generate(REQUEST))
        await anext(messages)
        router.process.terminate()
        with pytest.raises(grpc.aio.AioRpcError):
            assert [message async for message in messages]
        assert await router.process.wait() == 0
    await replica.until(lambda r: r.num_streams == 0)


async def test_it_starts_without_redis_and_gets_ready_when_that_comes(
    own_redis: RedisServer, namespace: str, card: ModelCard
) -> None:
    async with router_process(own_redis, namespace) as router:
        assert (await router.get("/healthz"), await router.get("/readyz")) == (200, 503)
        own_redis.start()
        redis = Redis.from_url(own_redis.url)
        replica = FakeReplica(Registry(redis, namespace), card, "replica-0", Script())
        await replica.start()
        await router.until_health_is(serving=True)
        assert await router.get("/readyz") == 200
        assert tokens_of([m async for m in router.stub.Generate(REQUEST)]) == [10, 11, 12, 13]
        await replica.kill()
        await redis.aclose()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({}, "redis.url"), ({"router": {"grpc_prot": 1}}, "grpc_prot")],
)
async def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    process = await start("--config-json", json.dumps(settings))
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert message in errors.decode()


@pytest.mark.parametrize("port", ["grpc_port", "http_port"])
async def test_a_taken_port_is_an_error(redis_server: RedisServer, port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        router = {"grpc_port": 0, "http_port": 0, port: taken.getsockname()[1]}
        settings = {"redis": {"url": redis_server.url}, "router": router}
        process = await start("--config-json", json.dumps(settings))
        _, errors = await process.communicate()
    assert process.returncode == 1
    assert "router cannot run" in errors.decode()
