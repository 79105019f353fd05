"""Several processes of one router: one address, and the loss of one is made good."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from redis.asyncio import Redis
from trunkline import AsyncClient, RetryPolicy
from trunkline.v1 import inference_pb2 as pb
from trunkline.v1.inference_pb2_grpc import InferenceStub

from cluster.registry import Registry
from cluster.settings import Settings
from ops.serve_router import RouterProcesses
from tests.redis_server import RedisServer
from tests.router.fake_replica import FakeReplica, Script
from tests.router.harness import eventually, tokens_of
from tests.tokenizers_fixture import byte_level_tokenizer, model_card

NUM_CALLS = 30
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


@pytest.fixture
def metrics_port() -> int:
    """A free port, as is the one after it."""
    for port in range(20_000, 30_000, 2):  # below those that connections are given
        with suppress(OSError), socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 1))
            return port
    raise AssertionError("no two ports are free")


@asynccontextmanager
async def two_processes(
    redis_server: RedisServer, namespace: str, directory: Path, metrics_port: int
) -> AsyncIterator[dict[str, str]]:
    settings = Settings.model_validate(
        {
            "redis": {"url": redis_server.url, "namespace": namespace},
            "router": {
                "grpc_port": 0,
                "http_port": 0,
                "processes": 2,
                "metrics_port": metrics_port,
                "drain_timeout_s": 1.0,
            },
        }
    )
    routers = RouterProcesses(settings, directory)
    addresses = await routers.start()
    keeping = asyncio.create_task(routers.keep())
    try:
        yield addresses
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
        await routers.stop()


@asynccontextmanager
async def fake_replica(registry: Registry) -> AsyncIterator[FakeReplica]:
    replica = FakeReplica(registry, model_card(byte_level_tokenizer()), "replica-0", Script())
    await replica.start()
    try:
        yield replica
    finally:
        await replica.kill()


async def generate(address: str) -> list[int]:
    """The answer to a request that has a connection of its own."""
    async with grpc.aio.insecure_channel(address, OWN_CONNECTION) as channel:
        stub = InferenceStub(channel)
        return tokens_of([m async for m in stub.Generate(pb.GenerateRequest(prompt="x"))])


async def tokens_by_process(metrics_port: int) -> list[float]:
    """What each has delivered, by its own metrics."""
    async with httpx.AsyncClient() as http:
        pages = [
            (await http.get(f"http://127.0.0.1:{metrics_port + number}/metrics")).text
            for number in range(2)
        ]
    name = 'trunkline:generation_tokens_total{model="tiny"} '
    return [
        sum(float(line.removeprefix(name)) for line in page.splitlines() if line.startswith(name))
        for page in pages
    ]


async def has_replica(address: str) -> bool:
    async with AsyncClient(address, retry=RetryPolicy(max_attempts=1)) as client:
        return [model.ready_replicas for model in await client.models()] == [1]


def processes(directory: Path) -> set[int]:
    """Those that keep their files in it; other tests' routers may run too."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline())
            if "router.main" in command and str(directory) in command:
                found.add(process.pid)
    return found


async def test_connections_are_shared_out_and_a_killed_process_comes_back(
    redis_server: RedisServer, redis: Redis, namespace: str, tmp_path: Path, metrics_port: int
) -> None:
    async with (
        fake_replica(Registry(redis, namespace)) as replica,
        two_processes(redis_server, namespace, tmp_path, metrics_port) as addresses,
    ):
        await eventually(lambda: has_replica(addresses["grpc"]))
        await replica.until(lambda r: r.num_streams == 2)
        for _ in range(NUM_CALLS):
            assert await generate(addresses["grpc"]) == [10, 11, 12, 13]
        served = await tokens_by_process(metrics_port)
        assert sum(served) == 4 * NUM_CALLS
        assert all(served), "the kernel gave all connections to one process"

        before = processes(tmp_path)
        assert len(before) == 2
        os.kill(min(before), signal.SIGKILL)
        async with AsyncClient(addresses["grpc"]) as client:
            for _ in range(5):
                assert await client.generate("x", seed=1, max_tokens=4).text()
        await replica.until(lambda r: r.num_streams == 2)
        await eventually(lambda: _are_two(tmp_path, before))
        async with httpx.AsyncClient(base_url=f"http://{addresses['http']}") as http:
            assert (await http.get("/healthz")).status_code == 200


async def _are_two(directory: Path, before: set[int]) -> bool:
    now = processes(directory)
    return len(now) == 2 and now != before
