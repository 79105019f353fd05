"""Names of the catalog, asked for at a router."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from redis.asyncio import Redis
from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.v1 import inference_pb2 as pb

from cluster.catalog import Alias, CatalogStore, Fallback, Split
from cluster.model_card import ModelCard
from cluster.redis_client import connect
from cluster.registry import Registry
from tests.redis_server import RedisServer
from tests.router.catalog.conftest import ModelMaker
from tests.router.fake_replica import FakeReplica, Script
from tests.router.harness import Client, detail_of, eventually, running_router

REFUSED = Script(fail_with=internal.Failed(cause=internal.Failed.CAUSE_REFUSED))


@pytest.fixture
async def models(make_model: ModelMaker) -> dict[str, FakeReplica]:
    """The only replicas of two models."""
    return {name: await make_model(name) for name in ("big", "small")}


@pytest.fixture
async def client(registry: Registry, models: dict[str, FakeReplica]) -> AsyncIterator[Client]:
    """A client of a router that has found them."""
    async with running_router(registry) as client:
        for name in models:
            await until_ready(client, name, 1)
        yield client


async def until_ready(client: Client, model: str, count: int) -> None:
    async def is_ready() -> bool:
        return await client.num_ready(model) == count

    await eventually(is_ready)


async def until_listed(client: Client, name: str, models: list[str]) -> None:
    """Changes of the catalog come to routers by and by."""

    async def is_listed() -> bool:
        listed = (await client.stub.ListModels(pb.ListModelsRequest())).models
        return any(model.name == name and list(model.models) == models for model in listed)

    await eventually(is_listed)


async def answered_by(client: Client, model: str, **options: Any) -> str:
    """The model that answers a request for this one."""
    request = pb.GenerateRequest(model=model, prompt="x", options=pb.RequestOptions(**options))
    [name] = {message.model async for message in client.stub.Generate(request)}
    return name


async def test_an_alias_is_known_at_once_and_says_who_answered(
    client: Client, catalog: CatalogStore
) -> None:
    await catalog.put("best", Alias(target="big"))
    assert await answered_by(client, "best") == "big"
    tokens = await client.stub.Tokenize(pb.TokenizeRequest(model="best", text="x"))
    text = await client.stub.Detokenize(pb.DetokenizeRequest(model="best", token_ids=[10]))
    assert tokens.model == text.model == "big"


async def test_an_alias_for_a_model_that_is_to_come(
    client: Client, catalog: CatalogStore, make_model: ModelMaker
) -> None:
    await catalog.put("next", Alias(target="huge"), allow_unknown=True)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answered_by(client, "next")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    await make_model("huge")
    assert await answered_by(client, "next") == "huge"


async def test_sessions_keep_their_version(client: Client, catalog: CatalogStore) -> None:
    await catalog.put("chat", Split(weights={"big": 1, "small": 1}))
    sessions = [f"session-{number}" for number in range(8)]
    first = [await answered_by(client, "chat", session_id=session) for session in sessions]
    again = [await answered_by(client, "chat", session_id=session) for session in sessions]
    assert first == again
    assert set(first) == {"big", "small"}


async def test_requests_without_a_session_are_drawn_for_one_by_one(
    client: Client, catalog: CatalogStore
) -> None:
    await catalog.put("chat", Split(weights={"big": 1, "small": 1}))
    found = [await answered_by(client, "chat", request_id=f"r{number}") for number in range(8)]
    assert set(found) == {"big", "small"}


async def test_falls_back_where_no_replica_is_ready(
    client: Client, catalog: CatalogStore, models: dict[str, FakeReplica]
) -> None:
    await catalog.put("big", Fallback(chain=("big", "small")))
    assert await answered_by(client, "big") == "big"
    await until_listed(client, "big", ["big", "small"])
    await models["big"].unregister()
    await models["big"].kill()
    await until_ready(client, "big", 1)  # of both together
    assert await answered_by(client, "big") == "small"
    fallbacks = client.metric("trunkline:model_fallbacks_total", model="big", reason="NO_REPLICA")
    assert fallbacks == 1


async def test_falls_back_when_all_replicas_refuse(
    client: Client, catalog: CatalogStore, models: dict[str, FakeReplica]
) -> None:
    models["big"].script = REFUSED
    await catalog.put("best", Fallback(chain=("big", "small")))
    assert await answered_by(client, "best") == "small"
    assert len(models["big"].submits) == 1


async def test_falls_back_when_the_deadline_would_pass(
    client: Client, catalog: CatalogStore, models: dict[str, FakeReplica]
) -> None:
    models["big"].load.MergeFrom(
        internal.Load(
            queued_prefill_tokens=100_000, prefill_tokens_per_s=1000.0, max_running_sequences=8
        )
    )
    await catalog.put("best", Fallback(chain=("big", "small")))

    async def is_known_to_be_late() -> bool:
        return await answered_by(client, "best", timeout={"seconds": 30}) == "small"

    await eventually(is_known_to_be_late)
    assert await answered_by(client, "best", timeout={"seconds": 300}) == "big"


async def test_what_is_wrong_with_the_request_is_no_reason_to_fall_back(
    client: Client, catalog: CatalogStore, models: dict[str, FakeReplica]
) -> None:
    await catalog.put("best", Fallback(chain=("big", "small")))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answered_by(client, "best", n=1000)
    assert detail_of(caught.value).field == "options.n"
    models["big"].script = Script(fail_with=internal.Failed(cause=internal.Failed.CAUSE_INTERNAL))
    with pytest.raises(grpc.aio.AioRpcError):
        await answered_by(client, "best")
    assert not models["small"].submits


async def test_names_are_listed_with_what_they_stand_for(
    client: Client, catalog: CatalogStore
) -> None:
    await catalog.put("best", Fallback(chain=("big", "small")))
    await catalog.put("later", Alias(target="unheard-of"), allow_unknown=True)
    await until_listed(client, "best", ["big", "small"])
    listed = (await client.stub.ListModels(pb.ListModelsRequest())).models
    assert [(m.name, list(m.models), m.ready_replicas) for m in listed] == [
        ("best", ["big", "small"], 2),
        ("big", [], 1),
        ("small", [], 1),
    ]
    async with httpx.AsyncClient(base_url=f"http://{client.addresses['http']}/v1") as http:
        found = (await http.get("/models/best")).json()
        answer = await http.post("/completions", json={"model": "best", "prompt": "x"})
    assert found["models"] == ["big", "small"]
    assert answer.json()["model"] == "big"


async def test_what_is_removed_is_forgotten_and_broken_entries_are_left_out(
    client: Client, catalog: CatalogStore, redis: Redis, namespace: str
) -> None:
    await catalog.put("best", Alias(target="big"))
    await until_listed(client, "best", ["big"])
    await catalog.remove("best")
    await redis.hset(f"{namespace}:catalog", "broken", "{")

    async def is_forgotten() -> bool:
        listed = (await client.stub.ListModels(pb.ListModelsRequest())).models
        return [model.name for model in listed] == ["big", "small"]

    await eventually(is_forgotten)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answered_by(client, "broken")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_names_stay_known_while_redis_is_away(namespace: str, card: ModelCard) -> None:
    server = RedisServer()
    server.start()
    async with connect(server.url) as redis:
        registry = Registry(redis, namespace)
        replica = FakeReplica(registry, card, "replica-0", Script())
        await replica.start()
        await CatalogStore(redis, namespace).put("best", Alias(target="tiny"))
        try:
            async with running_router(registry) as client:
                await client.until_ready(1)
                assert await answered_by(client, "best") == "tiny"
                server.stop()
                assert await answered_by(client, "best") == "tiny"
        finally:
            await replica.kill()
            server.remove()
