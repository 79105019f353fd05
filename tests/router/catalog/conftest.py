"""A cluster of several models."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from redis.asyncio import Redis

from cluster.catalog import CatalogStore
from cluster.model_card import ModelCard
from cluster.registry import Registry
from tests.router.fake_replica import FakeReplica, Script

ModelMaker = Callable[[str], Awaitable[FakeReplica]]


@pytest.fixture
def catalog(redis: Redis, namespace: str) -> CatalogStore:
    """The names of this test's cluster."""
    return CatalogStore(redis, namespace)


@pytest.fixture
async def make_model(registry: Registry, card: ModelCard) -> AsyncIterator[ModelMaker]:
    """Starts a fake replica of a model of its own."""
    made: list[FakeReplica] = []

    async def make(name: str) -> FakeReplica:
        replica = FakeReplica(
            registry, card.model_copy(update={"name": name}), f"of-{name}", Script()
        )
        made.append(replica)
        await replica.start()
        return replica

    yield make
    for replica in made:
        await replica.kill()
