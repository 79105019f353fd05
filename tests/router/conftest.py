"""A router with one fake replica behind it."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from redis.asyncio import Redis

from cluster.model_card import ModelCard
from cluster.registry import Registry
from router.text.codec import TextCodec
from tests.router.fake_replica import FakeReplica, Script
from tests.router.harness import Client, running_router
from tests.tokenizers_fixture import byte_level_tokenizer, model_card

ReplicaMaker = Callable[[str], Awaitable[FakeReplica]]


@pytest.fixture(scope="session")
def card() -> ModelCard:
    """The model that fake replicas serve."""
    return model_card(byte_level_tokenizer())


@pytest.fixture(scope="session")
def codec(card: ModelCard) -> TextCodec:
    """Its text side."""
    return TextCodec(card)


@pytest.fixture
def registry(redis: Redis, namespace: str) -> Registry:
    """The registry of this test's cluster."""
    return Registry(redis, namespace)


@pytest.fixture
async def make_replica(registry: Registry, card: ModelCard) -> AsyncIterator[ReplicaMaker]:
    """Starts and registers fake replicas."""
    made: list[FakeReplica] = []

    async def make(replica_id: str) -> FakeReplica:
        replica = FakeReplica(registry, card, replica_id, Script())
        made.append(replica)
        await replica.start()
        return replica

    yield make
    for replica in made:
        await replica.kill()


@pytest.fixture
async def replica(make_replica: ReplicaMaker) -> FakeReplica:
    """The only replica."""
    return await make_replica("replica-0")


@pytest.fixture
async def client(registry: Registry, replica: FakeReplica) -> AsyncIterator[Client]:
    """A client of a router that has found the only replica."""
    async with running_router(registry) as client:
        await client.until_ready(1)
        yield client
