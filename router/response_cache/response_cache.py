"""Requests that were answered before get the same answer again."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import NamedTuple, TypeVar

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from trunkline.internal.v1 import answer_pb2 as internal
from trunkline.v1 import inference_pb2 as pb

from cluster.settings import ResponseCacheSettings
from router.job import Job
from router.metrics import Metrics
from router.pause import Pause
from router.progress import Progress
from router.response_cache.answer import BrokenAnswerError, Recording, seal, unseal
from router.response_cache.answer_store import AnswerStore
from router.response_cache.replay import replay
from router.response_cache.request_key import is_repeatable, request_key, scope_of

Message = TypeVar("Message", pb.GenerateResponse, pb.ChatResponse)

log = structlog.get_logger(__name__)

_PATIENCE_S = 0.25
"""How long a request waits for Redis to say whether it was answered before."""
_PAUSE_S = 1.0
_MAX_CALLS = 32
"""Connections to Redis at a time."""


class _Place(NamedTuple):
    """Where an answer is kept."""

    model: str
    scope: str
    digest: bytes


class ResponseCache:
    """Exact answers, kept in Redis for each tenant or group of tenants.

    Equal requests at the same time are all computed, as none is made to wait for another; the one
    that ends last stays. While Redis is away, nothing is found or kept, which is counted.
    """

    def __init__(
        self, redis: Redis, namespace: str, settings: ResponseCacheSettings, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._store = AnswerStore(
            redis,
            namespace,
            ttl_ms=max(1, int(settings.ttl_s * 1000)),
            max_bytes=settings.max_bytes,
        )
        self._calls = asyncio.Semaphore(_MAX_CALLS)
        self._pause = Pause(_PAUSE_S, time.monotonic)
        self._keeping: set[asyncio.Task[None]] = set()

    def through(
        self,
        job: Job,
        given: pb.RequestOptions,
        progress: Progress,
        kind: type[Message],
        fresh: AsyncGenerator[Message, None],
    ) -> AsyncGenerator[Message, None]:
        """The job's answer: the one that was kept, or else `fresh`, which is closed in any case.

        `given` are the options as the client sent them. A kept answer has the tokens, texts,
        log-probabilities and ends of the fresh one, in larger deltas.
        """
        if not self._settings.enabled or given.no_response_cache or not is_repeatable(given):
            return fresh
        return self._through(job, progress, kind, fresh)

    async def close(self) -> None:
        """Wait until everything is kept that is to be."""
        await asyncio.gather(*self._keeping)

    async def _through(
        self,
        job: Job,
        progress: Progress,
        kind: type[Message],
        fresh: AsyncGenerator[Message, None],
    ) -> AsyncGenerator[Message, None]:
        async with aclosing(fresh):
            place = _place_of(job)
            answer = await self._find(place)
            if answer is not None:
                for message in replay(answer, job, progress, kind, pb.CACHE_SOURCE_EXACT):
                    yield message
                saved = progress.prompt_tokens + progress.completion_tokens
                self._metrics.response_cache_saved_tokens.labels(place.model).inc(saved)
                return
            recording = Recording(job.n, self._settings.max_answer_bytes)
            async for message in fresh:
                recording.add(message)
                yield message
            self._keep(place, recording)

    async def _find(self, place: _Place) -> internal.Answer | None:
        result, answer = await self._read(place)
        self._metrics.response_cache_lookups.labels(place.model, result).inc()
        return answer

    async def _read(self, place: _Place) -> tuple[str, internal.Answer | None]:
        """What came of looking, in a word, and the answer."""
        if self._pause.is_on:
            return "unavailable", None
        try:
            async with asyncio.timeout(_PATIENCE_S), self._calls:
                value = await self._store.get(place.scope, place.digest)
        except (RedisError, OSError) as error:
            self._fail("answers cannot be read", error)
            return "unavailable", None
        if value is None:
            return "miss", None
        try:
            return "hit", unseal(place.digest, value)
        except BrokenAnswerError as error:
            log.warning("a kept answer is broken", model=place.model, error=str(error))
            return "broken", None

    def _keep(self, place: _Place, recording: Recording) -> None:
        if recording.is_too_large:
            self._count_kept(place, "too_large")
        answer = recording.whole()
        if answer is not None:
            # Not waited for: the client has its answer.
            keeping = asyncio.create_task(self._write(place, seal(place.digest, answer)))
            self._keeping.add(keeping)
            keeping.add_done_callback(self._keeping.discard)

    async def _write(self, place: _Place, value: bytes) -> None:
        if self._pause.is_on:
            self._count_kept(place, "unavailable")
            return
        try:
            async with self._calls:
                await self._store.put(place.scope, place.digest, value)
        except (RedisError, OSError) as error:
            self._fail("answers cannot be kept", error)
            self._count_kept(place, "unavailable")
        else:
            self._count_kept(place, "kept")

    def _count_kept(self, place: _Place, result: str) -> None:
        self._metrics.response_cache_answers.labels(place.model, result).inc()

    def _fail(self, what: str, error: Exception) -> None:
        self._pause.begin()
        log.warning(what, error=str(error) or type(error).__name__)


def _place_of(job: Job) -> _Place:
    card, salt = job.model.card, job.route.cache_salt
    return _Place(
        card.name, scope_of(salt), request_key(card, job.prompt_token_ids, job.options, salt)
    )
