"""How both caches of answers deal with Redis."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog
from redis.exceptions import RedisError

from router.pause import Pause
from router.response_cache.answer import Recording, seal
from router.response_cache.cache_metrics import CacheMetrics

Result = TypeVar("Result")

log = structlog.get_logger(__name__)

_PATIENCE_S = 0.25
"""How long a request waits for an answer of Redis."""
_MAX_CALLS = 32
"""Connections to Redis at a time."""


class Keeper:
    """Asks Redis, and keeps answers there; once that fails, it counts as away for a while."""

    def __init__(self, metrics: CacheMetrics, pause_s: float) -> None:
        """`pause_s` is how long it counts as away."""
        self._metrics = metrics
        self._calls = asyncio.Semaphore(_MAX_CALLS)
        self._pause = Pause(pause_s, time.monotonic)
        self._keeping: set[asyncio.Task[None]] = set()

    @property
    def is_away(self) -> bool:
        """Whether Redis is not to be asked."""
        return self._pause.is_on

    async def ask(self, call: Coroutine[Any, Any, Result]) -> Result:
        """The result of a call that a request waits for. Raises RedisError and OSError."""
        async with asyncio.timeout(_PATIENCE_S), self._calls:
            return await call

    def keep(
        self,
        model: str,
        digest: bytes,
        recording: Recording,
        put: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """Have `put` keep what was recorded, sealed under `digest`, if it is a whole answer.

        Nobody waits for it: the client has its answer.
        """
        if recording.is_too_large:
            self._metrics.answers.labels(model, "too_large").inc()
        answer = recording.whole()
        if answer is not None:
            keeping = asyncio.create_task(self._put(model, seal(digest, answer), put))
            self._keeping.add(keeping)
            keeping.add_done_callback(self._keeping.discard)

    async def close(self) -> None:
        """Wait until everything is kept that is to be."""
        await asyncio.gather(*self._keeping)

    def note_failure(self, what: str, error: Exception) -> None:
        """Redis has failed; `what` says at which."""
        self._pause.begin()
        log.warning(what, error=str(error) or type(error).__name__)

    async def _put(self, model: str, value: bytes, put: Callable[[bytes], Awaitable[None]]) -> None:
        if self.is_away:
            result = "unavailable"
        else:
            try:
                async with self._calls:
                    await put(value)
                result = "kept"
            except (RedisError, OSError) as error:
                self.note_failure("answers cannot be kept", error)
                result = "unavailable"
        self._metrics.answers.labels(model, result).inc()
