"""The router talks to the replicas that live, and to no other."""

import asyncio
from collections.abc import Iterator

import grpc
import pytest
from redis.asyncio import Redis
from trunkline.v1 import inference_pb2 as pb

from cluster.model_card import ModelCard
from cluster.registry import Registry
from tests.redis_server import RedisServer
from tests.router.conftest import ReplicaMaker
from tests.router.fake_replica import FakeReplica, Script
from tests.router.harness import Client, eventually, running_router, tokens_of


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server that the test may stop."""
    server = RedisServer()
    server.start()
    yield server
    server.remove()


async def older_than(client: Client, seconds: float) -> bool:
    """Whether the router says that its knowledge of the registry is so old."""
    return (client.metric("trunkline:registry_age_seconds") or 0.0) > seconds


async def fresher_than(client: Client, seconds: float) -> bool:
    """The contrary."""
    return not await older_than(client, seconds)


async def test_replicas_are_found_as_they_come(client: Client, make_replica: ReplicaMaker) -> None:
    await make_replica("replica-1")
    await make_replica("replica-2")
    await client.until_ready(3)


async def test_a_stale_epoch_gets_no_requests(
    client: Client, replica: FakeReplica, make_replica: ReplicaMaker
) -> None:
    """A new incarnation on the old one's port, while the old lease still runs."""
    port = replica.port
    await replica.kill()
    await client.until_ready(0)
    replica.epoch += 1
    await replica.listen(port)
    successor = await make_replica("replica-1")
    for _ in range(3):
        await client.generate()
    assert (len(replica.submits), len(successor.submits)) == (0, 3)
    assert await client.num_ready() == 1


async def test_a_broken_stream_to_a_registered_replica_is_opened_again(
    client: Client, replica: FakeReplica
) -> None:
    port = replica.port
    await replica.kill()
    await client.until_ready(0)
    await replica.listen(port)
    assert tokens_of(await client.generate()) == [10, 11, 12, 13]


async def test_a_silent_replica_counts_as_lost(
    registry: Registry, replica: FakeReplica, make_replica: ReplicaMaker
) -> None:
    async with running_router(registry, replica_silence_s=1.0) as client:
        await client.until_ready(1)
        replica.script = Script(pause_after=0)
        call = asyncio.create_task(client.generate())
        await replica.until(lambda r: len(r.submits) == 1)
        replica.is_silent = True
        await make_replica("replica-1")
        assert tokens_of(await call) == [10, 11, 12, 13]


async def test_a_draining_replica_gets_no_new_requests(
    client: Client, replica: FakeReplica, make_replica: ReplicaMaker
) -> None:
    other = await make_replica("replica-1")
    await client.until_ready(2)
    replica.load.draining = True
    await client.until_ready(1)
    for _ in range(4):
        await client.generate()
    assert (len(replica.submits), len(other.submits)) == (0, 4)


async def test_a_replica_that_has_left_finishes_its_requests(
    client: Client, replica: FakeReplica
) -> None:
    replica.script = Script(pause_after=2)
    messages = aiter(client.stub.Generate(pb.GenerateRequest(prompt="x")))
    first = await anext(messages)
    await replica.unregister()
    await client.until_ready(0)
    assert replica.num_streams == 1
    replica.resume.set()
    assert tokens_of([first, *[message async for message in messages]]) == [10, 11, 12, 13]
    await replica.until(lambda r: r.num_streams == 0)


async def test_requests_are_served_while_redis_is_away(
    own_redis: RedisServer, namespace: str, card: ModelCard
) -> None:
    redis = Redis.from_url(own_redis.url)
    registry = Registry(redis, namespace)
    replica = FakeReplica(registry, card, "replica-0", Script())
    await replica.start()
    async with running_router(registry) as client:
        await client.until_ready(1)
        own_redis.stop()
        assert tokens_of(await client.generate()) == [10, 11, 12, 13]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.stub.Tokenize(pb.TokenizeRequest(model="other", text="x"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await eventually(lambda: older_than(client, 1.0))
        own_redis.start()
        await client.until_ready(0)
        call = asyncio.create_task(client.generate())
        await replica.register()
        assert tokens_of(await call) == [10, 11, 12, 13]
        await eventually(lambda: fresher_than(client, 1.0))
    await replica.kill()
    await redis.aclose()


async def test_a_broken_model_card_leaves_the_others_alone(
    client: Client, make_replica: ReplicaMaker, registry: Registry, card: ModelCard
) -> None:
    broken = card.model_copy(update={"name": "broken", "tokenizer_json": "{}"})
    replica = FakeReplica(registry, broken, "replica-1", Script())
    await replica.start()
    await make_replica("replica-2")
    await client.until_ready(2)
    assert [
        model.name for model in (await client.stub.ListModels(pb.ListModelsRequest())).models
    ] == ["tiny"]
    await replica.kill()


async def test_a_new_card_under_the_same_name_replaces_the_old_one(
    client: Client, registry: Registry, card: ModelCard
) -> None:
    longer = card.model_copy(update={"max_model_len": 1024})
    replica = FakeReplica(registry, longer, "replica-1", Script())
    await replica.start()
    await client.until_ready(2)
    models = (await client.stub.ListModels(pb.ListModelsRequest())).models
    assert [model.max_model_len for model in models] == [1024]
    await replica.kill()
