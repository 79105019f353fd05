"""`trunkline explain`: all routers are asked, and every candidate's cost is shown."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from cluster.registry import Registry, RouterRecord
from ops.explain import explain
from ops.failure import CommandError
from tests.redis_server import RedisServer
from tests.router.fake_replica import FakeReplica, Script
from tests.router.harness import Client, eventually, running_router
from tests.tokenizers_fixture import byte_level_tokenizer, model_card


@pytest.fixture
async def routers(redis: Redis, namespace: str) -> AsyncIterator[list[Client]]:
    """Clients of two routers before two replicas."""
    registry, card = Registry(redis, namespace), model_card(byte_level_tokenizer())
    replicas = [FakeReplica(registry, card, f"replica-{i}", Script()) for i in range(2)]
    for replica in replicas:
        await replica.start()
    async with running_router(registry) as one, running_router(registry) as two:
        for client in (one, two):
            await client.until_ready(2)
        await eventually(lambda: _both_entered(registry))
        yield [one, two]
    for replica in replicas:
        await replica.kill()


async def _both_entered(registry: Registry) -> bool:
    return len(await registry.routers()) == 2


async def run(
    request_id: str, server: RedisServer, namespace: str, *, as_json: bool = False
) -> None:
    await asyncio.to_thread(explain, request_id, server.url, namespace, None, as_json=as_json)


async def test_the_choices_of_all_routers_are_shown_in_order(
    routers: list[Client],
    redis_server: RedisServer,
    namespace: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for client in routers:
        await client.generate(request_id="asked-at-both")
    capsys.readouterr()
    await run("asked-at-both", redis_server, namespace, as_json=True)
    out = capsys.readouterr().out
    decisions = json.loads(out[out.index("[\n") :])
    assert len({decision["routerId"] for decision in decisions}) == 2
    assert decisions[0]["time"] < decisions[1]["time"]
    assert all(len(decision["candidates"]) == 2 for decision in decisions)


async def test_the_table_names_the_chosen_and_all_others(
    routers: list[Client],
    redis_server: RedisServer,
    namespace: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    await routers[1].generate(request_id="asked-once")
    capsys.readouterr()
    await run("asked-once", redis_server, namespace)
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("replica-0@", "replica-1@", "least_loaded", "new"))


async def test_a_request_that_nobody_remembers_is_an_error(
    routers: list[Client], redis_server: RedisServer, namespace: str
) -> None:
    with pytest.raises(CommandError, match="no router remembers a request 'never-came'"):
        await run("never-came", redis_server, namespace)


async def test_a_router_that_does_not_answer_is_named_and_the_others_are_heard(
    routers: list[Client],
    redis: Redis,
    redis_server: RedisServer,
    namespace: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gone = RouterRecord(
        router_id="gone", grpc_address="127.0.0.1:9", http_address="", started_at=0.0
    )
    await Registry(redis, namespace).enter_router(gone, lease_s=60.0)
    await routers[0].generate(request_id="asked-once")
    await run("asked-once", redis_server, namespace, as_json=True)
    captured = capsys.readouterr()
    assert "trunkline: router 127.0.0.1:9: " in captured.err
    assert '"requestId": "asked-once"' in captured.out


async def test_without_routers_there_is_nobody_to_ask(
    redis: Redis, redis_server: RedisServer, namespace: str
) -> None:
    with pytest.raises(CommandError, match="no router is running"):
        await run("any", redis_server, namespace)
