"""Requests with nearly the same meaning get one answer; what must be kept apart is."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from redis.asyncio import Redis
from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.v1 import inference_pb2 as pb

from cluster.model_card import ModelCard
from cluster.redis_client import connect
from cluster.registry import Registry
from cluster.tenants import Tenant, TenantStore
from router.text.codec import TextCodec
from tests.redis_server import RedisServer
from tests.router.fake_replica import FakeReplica, Script
from tests.router.harness import Client, eventually, running_router, tokens_of

THRESHOLD = 0.9
ENABLED: dict[str, Any] = {"semantic_cache": {"tiny": {"threshold": THRESHOLD}}}
GREEDY: dict[str, Any] = {"sampling": {"temperature": 0.0}}
PREFIX = "semantic_cache_"


def angle_of(degrees: float) -> tuple[float, float]:
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


@pytest.fixture
def embed(codec: TextCodec) -> Callable[[Sequence[int]], tuple[float, float]]:
    """The embedding of a prompt that is a number of degrees."""
    return lambda token_ids: angle_of(float(codec.decode(token_ids)))


@pytest.fixture
async def near(
    registry: Registry,
    replica: FakeReplica,
    embed: Callable[[Sequence[int]], tuple[float, float]],
) -> AsyncIterator[Client]:
    """A client of a router that answers prompts less than 25 degrees apart alike."""
    replica.script = Script(embed=embed)
    async with running_router(registry, **ENABLED) as client:
        await client.until_ready(1)
        yield client


async def until_kept(client: Client, count: int = 1, result: str = "kept") -> None:
    """Answers are kept after the client has them."""

    async def are_kept() -> bool:
        return value(client, "answers_total", result=result) == count

    await eventually(are_kept)


def value(client: Client, name: str, **labels: str) -> float:
    return client.metric(f"trunkline:{PREFIX}{name}", model="tiny", **labels) or 0


def answered(replica: FakeReplica) -> list[internal.Submit]:
    """The requests for tokens that the replica has got."""
    return [submit for submit in replica.submits if not submit.embed]


async def source(client: Client, prompt: str, **options: Any) -> int:
    return (await client.generate(prompt, **(GREEDY | options)))[-1].cache_source


async def test_a_prompt_within_the_threshold_gets_the_answer_and_one_beyond_does_not(
    near: Client, replica: FakeReplica
) -> None:
    fresh = await near.generate("0", **GREEDY)
    await until_kept(near)
    kept = await near.generate("25", **GREEDY)
    assert kept[-1].cache_source == pb.CACHE_SOURCE_SEMANTIC
    assert tokens_of(kept) == tokens_of(fresh)
    assert kept[-1].request_id != fresh[-1].request_id
    assert len(answered(replica)) == 1
    assert value(near, "saved_tokens_total") == len(tokens_of(fresh))
    assert await source(near, "26") == pb.CACHE_SOURCE_UNSPECIFIED
    assert len(answered(replica)) == 2
    assert value(near, "lookups_total", result="hit") == 1
    assert value(near, "lookups_total", result="miss") == 2
    assert value(near, "embedding_seconds_count") == 3


async def test_the_nearest_answer_is_taken(near: Client, replica: FakeReplica) -> None:
    for count, degrees in enumerate(("0", "60", "30"), start=1):
        replica.script.answer = (10 + count,)
        assert not await source(near, degrees)
        await until_kept(near, count)
    assert tokens_of(await near.generate("40", **GREEDY)) == [13]
    assert tokens_of(await near.generate("50", **GREEDY)) == [12]


async def test_a_prompt_is_embedded_with_the_tenants_salt_and_its_own_tokens(
    near: Client, replica: FakeReplica
) -> None:
    """So that the keys and values which that leaves behind are found by the request itself."""
    await near.generate("7", **GREEDY)
    first, second = replica.submits
    assert (first.embed, second.embed) == (True, False)
    assert first.prompt_token_ids == second.prompt_token_ids
    assert first.cache_salt == second.cache_salt


async def test_all_routers_find_what_one_has_kept(
    registry: Registry, near: Client, replica: FakeReplica
) -> None:
    await near.generate("0", **GREEDY)
    await until_kept(near)
    async with running_router(registry, **ENABLED) as other:
        await other.until_ready(1)
        assert await source(other, "10") == pb.CACHE_SOURCE_SEMANTIC


@pytest.mark.parametrize(
    "options",
    [
        {"sampling": {"temperature": 1.0}},
        {"sampling": {"seed": 3}, "n": 2},
        {"logprobs": {"top_logprobs": 0}},
        {"logprobs": {"prompt_top_logprobs": 1}},
        {"no_response_cache": True},
    ],
    ids=str,
)
async def test_what_no_other_answer_can_be_an_answer_to_is_not_even_embedded(
    near: Client, replica: FakeReplica, options: dict[str, Any]
) -> None:
    await near.generate("0", **GREEDY)
    await until_kept(near)
    assert not await source(near, "0", **options)
    assert [submit.embed for submit in replica.submits] == [True, False, False]


@pytest.mark.parametrize(
    "options",
    [
        {"sampling": {"temperature": 0.0, "frequency_penalty": 1.0}},
        {"sampling": {"seed": 3}},
        {"stop": {"max_tokens": 9}},
        {"stop": {"stop_strings": ["no such"]}},
    ],
    ids=str,
)
async def test_other_options_find_other_answers(
    near: Client, replica: FakeReplica, options: dict[str, Any]
) -> None:
    await near.generate("0", **GREEDY)
    await until_kept(near)
    assert not await source(near, "0", **options)
    await until_kept(near, 2)
    assert await source(near, "1", **options) == pb.CACHE_SOURCE_SEMANTIC


async def test_prompts_of_any_length_belong_together_when_no_limit_is_set(near: Client) -> None:
    """What max_tokens is completed with then depends on the prompt's length."""
    await near.generate("0", **GREEDY)
    await until_kept(near)
    assert await source(near, "0.0000") == pb.CACHE_SOURCE_SEMANTIC


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
    async with running_router(registry, require_api_key=True, **ENABLED) as client:

        async def source_for(key: str) -> int:
            options = pb.RequestOptions(**GREEDY)
            request = pb.GenerateRequest(model="tiny", prompt="x", options=options)
            call = client.stub.Generate(request, metadata=[("authorization", f"Bearer {key}")])
            return [message async for message in call][-1].cache_source

        found = []
        for count, key in enumerate(keys[:3], start=1):
            found.append(await source_for(key))
            await until_kept(client, count)
        assert found == [0, 0, 0]
        assert [await source_for(key) for key in keys] == [pb.CACHE_SOURCE_SEMANTIC] * 4


async def test_beyond_max_entries_the_oldest_go(
    registry: Registry,
    replica: FakeReplica,
    redis: Redis,
    namespace: str,
    embed: Callable[[Sequence[int]], tuple[float, float]],
) -> None:
    replica.script = Script(embed=embed)
    settings = {"semantic_cache": {"tiny": {"threshold": THRESHOLD, "max_entries": 2}}}
    async with running_router(registry, **settings) as client:
        await client.until_ready(1)
        for count, degrees in enumerate(("0", "90", "180"), start=1):
            assert not await source(client, degrees)
            await until_kept(client, count)
        [vectors] = [key async for key in redis.scan_iter(f"{namespace}:semantic:*:vectors")]
        assert await redis.hlen(vectors) == 2
        assert await source(client, "180") == pb.CACHE_SOURCE_SEMANTIC
        assert await source(client, "90") == pb.CACHE_SOURCE_SEMANTIC
        assert not await source(client, "0")


async def test_answers_are_forgotten_after_their_time(
    registry: Registry, replica: FakeReplica, redis: Redis, namespace: str
) -> None:
    settings = {"semantic_cache": {"tiny": {"ttl_s": 0.2}}}
    async with running_router(registry, **settings) as client:
        await client.until_ready(1)
        await client.generate("0", **GREEDY)
        await until_kept(client)

        async def is_forgotten() -> bool:
            return not [key async for key in redis.scan_iter(f"{namespace}:semantic:*")]

        await eventually(is_forgotten)
        assert not await source(client, "0")


async def test_an_answer_from_here_is_not_kept_as_an_exact_one(
    registry: Registry,
    replica: FakeReplica,
    embed: Callable[[Sequence[int]], tuple[float, float]],
) -> None:
    replica.script = Script(embed=embed)
    async with running_router(registry, response_cache={"enabled": True}, **ENABLED) as client:
        await client.until_ready(1)
        await client.generate("0", **GREEDY)
        await until_kept(client)
        assert await source(client, "0") == pb.CACHE_SOURCE_EXACT
        for _ in range(2):
            assert await source(client, "1") == pb.CACHE_SOURCE_SEMANTIC


async def test_a_prompt_that_cannot_be_embedded_is_answered(
    near: Client, replica: FakeReplica
) -> None:
    replica.script = Script(embed=lambda _: (math.nan, 0.0))
    assert tokens_of(await near.generate("0", **GREEDY)) == [10, 11, 12, 13]
    replica.script = Script(embed=lambda _: ())
    assert tokens_of(await near.generate("0", **GREEDY)) == [10, 11, 12, 13]
    assert value(near, "lookups_total", result="failed") == 2


async def test_an_embedding_that_takes_too_long_is_not_waited_for(
    registry: Registry, replica: FakeReplica
) -> None:
    replica.script = Script(pause_after=0)
    settings = {"semantic_cache": {"tiny": {"embedding_timeout_s": 0.05}}}
    async with running_router(registry, **settings) as client:
        await client.until_ready(1)
        call = asyncio.create_task(client.generate("0", **GREEDY))
        await replica.until(lambda r: len(answered(r)) == 1 and len(r.cancels) == 1)
        replica.resume.set()
        assert tokens_of(await call) == [10, 11, 12, 13]
        assert value(client, "lookups_total", result="failed") == 1


async def test_an_embedding_survives_the_loss_of_its_replica(
    near: Client, replica: FakeReplica, make_replica: Callable[[str], Any]
) -> None:
    replica.script = Script(pause_after=0)
    call = asyncio.create_task(near.generate("0", **GREEDY))
    await replica.until(lambda r: bool(r.submits))
    other: FakeReplica = await make_replica("replica-1")
    await near.until_ready(2)
    await replica.kill()
    assert tokens_of(await call) == [10, 11, 12, 13]
    assert [submit.embed for submit in other.submits] == [True, False]
    assert value(near, "lookups_total", result="miss") == 1


async def test_another_model_can_embed(
    registry: Registry, replica: FakeReplica, card: ModelCard
) -> None:
    embedding_card = card.model_copy(update={"name": "embedder", "fingerprint": "e" * 32})
    embedder = FakeReplica(registry, embedding_card, "replica-e", Script())
    await embedder.start()
    try:
        settings = {"semantic_cache": {"tiny": {"embedding_model": "embedder"}}}
        async with running_router(registry, **settings) as client:
            await client.until_ready(1)
            for expected in (pb.CACHE_SOURCE_UNSPECIFIED, pb.CACHE_SOURCE_SEMANTIC):
                request = pb.GenerateRequest(
                    model="tiny", prompt="some text", options=pb.RequestOptions(**GREEDY)
                )
                messages = [message async for message in client.stub.Generate(request)]
                assert messages[-1].cache_source == expected
                await until_kept(client)
            assert [submit.embed for submit in embedder.submits] == [True, True]
            assert [submit.embed for submit in replica.submits] == [False]
    finally:
        await embedder.kill()


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
            async with running_router(registry, **ENABLED) as client:
                await client.until_ready(1)
                await client.generate(**GREEDY)
                await until_kept(client)
                server.stop()
                for _ in range(3):
                    assert tokens_of(await client.generate(**GREEDY)) == [10, 11, 12, 13]
                assert value(client, "lookups_total", result="unavailable") == 3
                # For a while, nothing is embedded that could not be compared.
                assert sum(submit.embed for submit in replica.submits) == 2
        finally:
            await replica.kill()
            server.remove()
