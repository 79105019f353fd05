"""A real Redis for tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from redis.asyncio import Redis

from cluster.redis_client import connect
from cluster.redis_server import RedisServer


@asynccontextmanager
async def running_redis(directory: Path) -> AsyncIterator[tuple[RedisServer, Redis]]:
    """A private server in `directory`, and a client of it."""
    server = RedisServer(directory)
    await server.start()
    try:
        async with connect(server.url) as client:
            yield server, client
    finally:
        await server.stop()
