"""Requests that were answered before get the same answer again."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import NamedTuple, TypeVar

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from trunkline.internal.v1 import answer_pb2 as internal
from trunkline.v1 import inference_pb2 as pb

from cluster.settings import ResponseCacheSettings
from router.job import Job
from router.metrics import Metrics
from router.progress import Progress
from router.response_cache.answer import BrokenAnswerError, Recording, unseal
from router.response_cache.answer_store import AnswerStore
from router.response_cache.keeper import Keeper
from router.response_cache.replay import replay
from router.response_cache.request_key import is_repeatable, request_key, scope_of

Message = TypeVar("Message", pb.GenerateResponse, pb.ChatResponse)

log = structlog.get_logger(__name__)

_PAUSE_S = 1.0


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
        self._metrics = metrics.response_cache
        self._store = AnswerStore(
            redis,
            namespace,
            ttl_ms=max(1, int(settings.ttl_s * 1000)),
            max_bytes=settings.max_bytes,
        )
        self._keeper = Keeper(self._metrics, _PAUSE_S)

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
        await self._keeper.close()

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
                self._metrics.saved_tokens.labels(place.model).inc(saved)
                return
            recording = Recording(job.n, self._settings.max_answer_bytes)
            async for message in fresh:
                recording.add(message)
                yield message
            self._keeper.keep(
                place.model,
                place.digest,
                recording,
                partial(self._store.put, place.scope, place.digest),
            )

    async def _find(self, place: _Place) -> internal.Answer | None:
        result, answer = await self._read(place)
        self._metrics.lookups.labels(place.model, result).inc()
        return answer

    async def _read(self, place: _Place) -> tuple[str, internal.Answer | None]:
        """What came of looking, in a word, and the answer."""
        if self._keeper.is_away:
            return "unavailable", None
        try:
            value = await self._keeper.ask(self._store.get(place.scope, place.digest))
        except (RedisError, OSError) as error:
            self._keeper.note_failure("answers cannot be read", error)
            return "unavailable", None
        if value is None:
            return "miss", None
        try:
            return "hit", unseal(place.digest, value)
        except BrokenAnswerError as error:
            log.warning("a kept answer is broken", model=place.model, error=str(error))
            return "broken", None


def _place_of(job: Job) -> _Place:
    card, salt = job.model.card, job.route.cache_salt
    return _Place(
        card.name, scope_of(salt), request_key(card, job.prompt_token_ids, job.options, salt)
    )
