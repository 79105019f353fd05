"""The Redis servers that a cluster starts for itself."""

import asyncio
from pathlib import Path

from cluster.redis_server import RedisServer
from cluster.settings import Settings
from ops.failure import CommandError

_RESTART_PAUSE_S = 1.0


class OwnRedis:
    """Up to two: the cluster's own and that of prefixes (engine.redis_cache), where neither has a
    URL. For the main thread's event loop."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        """`directory` is private to the user, and there are sockets and logs in it."""
        host = settings.ray.node_address
        cache = settings.engine.redis_cache
        self._cluster: RedisServer | None = None
        self._cache: RedisServer | None = None
        self._cache_bytes = cache.max_bytes
        if settings.redis.url is None:
            self._cluster = RedisServer(directory, (host, settings.redis.port) if host else None)
        if cache.is_ours:
            own = directory / "cache"
            own.mkdir(mode=0o700)
            address = (host, cache.port) if host else None
            self._cache = RedisServer(own, address, cache.max_bytes)
        self._servers = [server for server in (self._cluster, self._cache) if server is not None]

    def with_urls(self, settings: Settings) -> Settings:
        """The settings with the URLs of these servers, where they have none.

        Raises CommandError if they want a server for prefixes that is not the one that there is.
        """
        if self._cluster is not None:
            redis = settings.redis.model_copy(update={"url": self._cluster.url})
            settings = settings.model_copy(update={"redis": redis})
        cache = settings.engine.redis_cache
        if not cache.is_ours:
            return settings
        if self._cache is None or cache.max_bytes != self._cache_bytes:
            there_is = "none" if self._cache is None else f"one of {self._cache_bytes}"
            raise CommandError(
                f"engine.redis_cache.max_bytes: got {cache.max_bytes}, but there is {there_is}; "
                "that server changes only with a new start of the cluster"
            )
        cache = cache.model_copy(update={"url": self._cache.url})
        engine = settings.engine.model_copy(update={"redis_cache": cache})
        return settings.model_copy(update={"engine": engine})

    async def start(self) -> None:
        """Start them; returns when they answer. Raises as RedisServer.start does."""
        for server in self._servers:
            await server.start()

    async def keep(self) -> None:
        """Start each again, empty, whenever it ends, until cancelled.

        Raises as RedisServer.start does if the cluster's own cannot be started again.
        """
        caching = asyncio.create_task(self._keep_cache())
        try:
            if self._cluster is not None:
                await self._cluster.keep()
            await caching
        finally:
            caching.cancel()

    async def stop(self) -> None:
        """End them; harmless if they have ended."""
        await asyncio.gather(*(server.stop() for server in self._servers))

    async def _keep_cache(self) -> None:
        """Replicas can do without it; its log says why it does not start."""
        while self._cache is not None:
            try:
                await self._cache.keep()
            except (OSError, RuntimeError):
                await asyncio.sleep(_RESTART_PAUSE_S)
