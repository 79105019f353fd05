"""The Redis of the cluster that a command is about."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.exceptions import RedisError

from cluster.redis_client import connect, without_password
from ops.failure import CommandError, UsageError
from ops.serve_run_file import find_run_file


@asynccontextmanager
async def cluster_redis(redis_url: str | None, namespace: str) -> AsyncIterator[tuple[Redis, str]]:
    """A client and the namespace: those given, or those of the cluster on this machine.

    Raises CommandError if there is none; errors of Redis inside become CommandErrors.
    """
    if redis_url is None:
        run = find_run_file()
        if run is None:
            raise CommandError("no cluster runs on this machine; give --redis-url for another one")
        redis_url, namespace = run.redis_url, run.namespace
    try:
        redis = connect(redis_url)
    except ValueError as error:
        raise UsageError(f"--redis-url: {error}") from error
    try:
        async with redis:
            yield redis, namespace
    except (RedisError, OSError) as error:
        raise CommandError(f"{without_password(redis_url)}: {error}") from error
