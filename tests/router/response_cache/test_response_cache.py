"""Equal requests get equal answers without a replica; what may not be kept is not."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from trunkline.v1 import inference_pb2 as pb

from cluster.model_card import ModelCard
from cluster.redis_client import connect
from cluster.registry import Registry
from cluster.tenants import Tenant, TenantStore
from tests.redis_server import RedisServer
from tests.router.fake_replica import FakeReplica, Script
from tests.router.harness import Client, eventually, running_router, text_of, tokens_of

ENABLED = {"enabled": True}
GREEDY: dict[str, Any] = {"sampling": {"temperature": 0.0}}


@pytest.fixture
async def cached(registry: Registry, replica: FakeReplica) -> AsyncIterator[Client]:
    """A client of a router that keeps answers."""
    async with running_router(registry, response_cache=ENABLED) as client:
        await client.until_ready(1)
        yield client


async def until_kept(client: Client, count: int = 1, result: str = "kept") -> None:
    """Answers are kept after the client has them."""

    async def are_kept() -> bool:
        name = "trunkline:response_cache_answers_total"
        return client.metric(name, model="tiny", result=result) == count

    await eventually(are_kept)


def lookups(client: Client, result: str) -> float:
    found = client.metric("trunkline:response_cache_lookups_total", model="tiny", result=result)
    return found or 0


def joined(messages: list[pb.GenerateResponse]) -> list[bytes]:
    """What an answer adds up to: each sample, and all else but times and the request's id."""
    samples: dict[int, pb.Delta] = {}
    last = pb.GenerateResponse()
    for message in messages:
        if message.HasField("delta"):
            samples.setdefault(message.delta.index, pb.Delta()).MergeFrom(message.delta)
        message.ClearField("request_id")
        rest = pb.GenerateResponse()
        rest.CopyFrom(message)
        for name in ("delta", "timings", "cache_source"):
            rest.ClearField(name)
        last.MergeFrom(rest)
    last.usage.cached_prompt_tokens = 0
    for index, sample in samples.items():
        sample.text = text_of(messages, index)
    parts = [*(samples[index] for index in sorted(samples)), last]
    return [part.SerializeToString(deterministic=True) for part in parts]


@pytest.mark.parametrize(
    "options",
    [
        {"sampling": {"temperature": 0.0}},
        {"sampling": {"seed": 3}, "n": 3},
        {"sampling": {"seed": 3}, "logprobs": {"top_logprobs": 1, "prompt_top_logprobs": 1}},
        {"sampling": {"temperature": 0.0}, "stop": {"stop_strings": ["no such"], "max_tokens": 9}},
    ],
)
async def test_the_same_request_gets_the_same_answer_without_a_replica(
    cached: Client, replica: FakeReplica, options: dict[str, Any]
) -> None:
    replica.script = Script(answer=range(10, 60))
    fresh = await cached.generate(**options)
    await until_kept(cached)
    kept = await cached.generate(**options)
    assert fresh[-1].cache_source == pb.CACHE_SOURCE_UNSPECIFIED
    assert kept[-1].cache_source == pb.CACHE_SOURCE_EXACT
    assert kept[-1].usage.cached_prompt_tokens == 0
    assert kept[-1].HasField("timings")
    assert len(kept) <= len(fresh)
    assert kept[0].prompt_logprobs == fresh[0].prompt_logprobs
    assert joined(kept) == joined(fresh)
    assert len(replica.submits) == 1
    usage = kept[-1].usage
    saved = cached.metric("trunkline:response_cache_saved_tokens_total", model="tiny")
    assert saved == usage.prompt_tokens + usage.completion_tokens


async def test_an_answer_that_ends_at_a_stop_is_kept_with_what_ended_it(
    cached: Client, replica: FakeReplica
) -> None:
    replica.script = Script(stop_token_id=1)
    fresh = await cached.generate(**GREEDY)
    await until_kept(cached)
    kept = await cached.generate(**GREEDY)
    assert kept[-2].delta.stop_token_id == fresh[-2].delta.stop_token_id == 1
    assert joined(kept) == joined(fresh)


async def test_each_request_has_its_own_id_also_in_a_kept_answer(cached: Client) -> None:
    await cached.generate(request_id="a", **GREEDY)
    await until_kept(cached)
    assert {message.request_id for message in await cached.generate(request_id="b", **GREEDY)} == {
        "b"
    }


async def test_all_routers_find_what_one_has_kept(
    registry: Registry, cached: Client, replica: FakeReplica
) -> None:
    await cached.generate(**GREEDY)
    await until_kept(cached)
    async with running_router(registry, response_cache=ENABLED) as other:
        await other.until_ready(1)
        assert (await other.generate(**GREEDY))[-1].cache_source == pb.CACHE_SOURCE_EXACT


async def test_sampling_without_a_seed_is_never_kept(
    cached: Client, replica: FakeReplica, redis: Redis, namespace: str
) -> None:
    for _ in range(2):
        await cached.generate()
    assert len(replica.submits) == 2
    assert not [key async for key in redis.scan_iter(f"{namespace}:answers:*")]


async def test_who_goes_around_the_cache_neither_reads_nor_writes(
    cached: Client, replica: FakeReplica, redis: Redis, namespace: str
) -> None:
    await cached.generate(no_response_cache=True, **GREEDY)
    assert not [key async for key in redis.scan_iter(f"{namespace}:answers:*")]
    await cached.generate(**GREEDY)
    await until_kept(cached)
    answer = await cached.generate(no_response_cache=True, **GREEDY)
    assert answer[-1].cache_source == pb.CACHE_SOURCE_UNSPECIFIED
    assert len(replica.submits) == 3


async def test_it_is_off_unless_it_is_asked_for(
    client: Client, replica: FakeReplica, redis: Redis, namespace: str
) -> None:
    for _ in range(2):
        await client.generate(**GREEDY)
    assert len(replica.submits) == 2
    assert not [key async for key in redis.scan_iter(f"{namespace}:answers:*")]


async def test_tenants_find_answers_of_their_own_or_their_group_only(
    registry: Registry, redis: Redis, namespace: str, replica: FakeReplica
) -> None:
    store = TenantStore(redis, namespace)
    tenants = [
        *(Tenant(name="a"), Tenant(name="b")),
        *(Tenant(name="c", cache_group="g"), Tenant(name="d", cache_group="g")),
    ]
    keys = []
    for tenant in tenants:
        await store.add(tenant)
        keys.append(str(await store.add_key(tenant)))
    settings = {"response_cache": ENABLED, "require_api_key": True}
    async with running_router(registry, **settings) as client:

        async def source(key: str) -> int:
            options = pb.RequestOptions(**GREEDY)
            request = pb.GenerateRequest(model="tiny", prompt="x", options=options)
            call = client.stub.Generate(request, metadata=[("authorization", f"Bearer {key}")])
            return [message async for message in call][-1].cache_source

        found = []
        for count, key in enumerate((keys[0], keys[1], keys[2]), start=1):
            found.append(await source(key))
            await until_kept(client, count)
        assert found == [0, 0, 0]
        assert [await source(key) for key in keys] == [pb.CACHE_SOURCE_EXACT] * 4


async def test_answers_are_forgotten_after_their_time(
    registry: Registry, redis: Redis, namespace: str, replica: FakeReplica
) -> None:
    async with running_router(registry, response_cache=ENABLED | {"ttl_s": 0.2}) as client:
        await client.until_ready(1)
        await client.generate(**GREEDY)
        await until_kept(client)

        async def is_forgotten() -> bool:
            return not [key async for key in redis.scan_iter(f"{namespace}:answers:*")]

        await eventually(is_forgotten)
        assert not (await client.generate(**GREEDY))[-1].cache_source


async def test_large_answers_are_not_kept(registry: Registry, replica: FakeReplica) -> None:
    settings = ENABLED | {"max_answer_bytes": 10}
    async with running_router(registry, response_cache=settings) as client:
        await client.until_ready(1)
        await client.generate(**GREEDY)
        await until_kept(client, result="too_large")
        assert not (await client.generate(**GREEDY))[-1].cache_source


async def test_broken_answers_are_none_and_replaced(
    cached: Client, replica: FakeReplica, redis: Redis, namespace: str
) -> None:
    await cached.generate(**GREEDY)
    await until_kept(cached)
    async for key in redis.scan_iter(f"{namespace}:answers:*"):
        if await redis.type(key) == b"string":
            await redis.setrange(key, 30, b"\xff\xff")
    assert not (await cached.generate(**GREEDY))[-1].cache_source
    assert lookups(cached, "broken") == 1
    await until_kept(cached, 2)
    assert (await cached.generate(**GREEDY))[-1].cache_source == pb.CACHE_SOURCE_EXACT


async def test_an_answer_that_fails_is_not_kept(
    cached: Client, replica: FakeReplica, redis: Redis, namespace: str
) -> None:
    replica.script = Script(pause_after=2)
    request = pb.GenerateRequest(prompt="x", options=pb.RequestOptions(**GREEDY))
    call = cached.stub.Generate(request)
    await anext(aiter(call))
    call.cancel()
    await replica.until(lambda r: bool(r.cancels))
    assert not [key async for key in redis.scan_iter(f"{namespace}:answers:*")]


async def test_equal_requests_at_one_time_are_all_computed(
    cached: Client, replica: FakeReplica
) -> None:
    replica.script = Script(pause_after=0)
    calls = [asyncio.create_task(cached.generate(**GREEDY)) for _ in range(3)]
    await replica.until(lambda r: len(r.submits) == 3)
    replica.resume.set()
    answers = [joined(await call) for call in calls]
    assert answers[0] == answers[1] == answers[2]


async def test_while_redis_is_away_requests_are_served_and_counted(
    card: ModelCard, namespace: str
) -> None:
    server = RedisServer()
    server.start()
    async with connect(server.url) as redis:
        registry = Registry(redis, namespace)
        replica = FakeReplica(registry, card, "replica-0", Script())
        await replica.start()
        try:
            async with running_router(registry, response_cache=ENABLED) as client:
                await client.until_ready(1)
                await client.generate(**GREEDY)
                await until_kept(client)
                server.stop()
                for _ in range(3):
                    assert tokens_of(await client.generate(**GREEDY)) == [10, 11, 12, 13]
                assert lookups(client, "unavailable") == 3
                await until_kept(client, 3, "unavailable")
        finally:
            await replica.kill()
            server.remove()


async def test_http_says_where_an_answer_comes_from(cached: Client) -> None:
    body = {"prompt": "hello", "temperature": 0, "max_tokens": 4}
    async with httpx.AsyncClient(base_url=f"http://{cached.addresses['http']}/v1") as http:
        fresh = (await http.post("/completions", json=body)).json()
        await until_kept(cached)
        kept = (await http.post("/completions", json=body)).json()
        around = await http.post("/completions", json=body, headers={"x-trunkline-cache": "bypass"})
        options = {"stream": True, "stream_options": {"include_usage": True}}
        events = (await http.post("/completions", json=body | options)).text
    assert kept["choices"] == fresh["choices"]
    assert kept["cache_source"] == "exact"
    assert "cache_source" not in fresh
    assert "cache_source" not in around.json()
    assert '"cache_source":"exact"' in events.split("data: ")[-2]


async def test_the_sum_of_a_tenants_answers_is_bounded(
    registry: Registry, redis: Redis, namespace: str, replica: FakeReplica
) -> None:
    settings = ENABLED | {"max_answer_bytes": 500, "max_bytes": 500}
    async with running_router(registry, response_cache=settings) as client:
        await client.until_ready(1)
        for count in range(1, 21):
            await client.generate(f"prompt {count}", **GREEDY)
            await until_kept(client, count)
        values = [
            await redis.strlen(key)
            async for key in redis.scan_iter(f"{namespace}:answers:*")
            if await redis.type(key) == b"string"
        ]
        assert 250 < sum(values) <= 500
        assert (await client.generate("prompt 20", **GREEDY))[-1].cache_source
        assert not (await client.generate("prompt 1", **GREEDY))[-1].cache_source
