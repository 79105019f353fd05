"""What tests of all packages share: a real Redis, and a namespace in it for each test."""

import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis

from cluster.redis_client import connect
from tests.redis_server import RedisServer

# That a machine is busy is no fault of what is tested.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One server for the whole run; a test that stops it makes its own."""
    server = RedisServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture
def namespace() -> str:
    """A prefix for keys that no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """A client of the shared server."""
    client = connect(redis_server.url)
    yield client
    await client.aclose()
