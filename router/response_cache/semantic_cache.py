"""Requests get the answer that one with nearly the same meaning has got."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from hashlib import blake2b
from typing import NamedTuple, TypeVar

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from trunkline.internal.v1 import answer_pb2 as internal
from trunkline.v1 import inference_pb2 as pb

from cluster.errors import RequestError
from cluster.model_card import ModelCard
from cluster.settings import ResponseCacheSettings, SemanticCacheSettings
from router.embedder import Embedder, Floats
from router.fleet.served_model import ServedModel
from router.job import Job
from router.metrics import Metrics
from router.progress import Progress
from router.response_cache.answer import BrokenAnswerError, Recording, unseal
from router.response_cache.answer_store import AnswerStore
from router.response_cache.keeper import Keeper
from router.response_cache.replay import replay
from router.response_cache.request_key import is_repeatable, request_key, scope_of
from router.response_cache.semantic_store import SemanticStore
from router.response_cache.vector_group import VectorGroup, VectorGroups, to_bytes

Message = TypeVar("Message", pb.GenerateResponse, pb.ChatResponse)

log = structlog.get_logger(__name__)

_PAUSE_S = 5.0
"""In which nothing is embedded either, for there would be nothing to compare it with."""
_MAX_LOCAL_BYTES = 256 * 1024**2
"""Vectors that a router has at hand."""


class _Place(NamedTuple):
    """Where the answer to a request is kept, and its vector."""

    model: str
    scope: str
    group: str
    digest: bytes
    vector: Floats


class SemanticCache:
    """Answers to prompts whose embeddings are near each other, for the models that have it set up.

    A request can get an answer only of its own tenant or group of tenants, of the same model and
    for the same options. Whatever fails, requests are answered as without it.
    """

    def __init__(
        self,
        redis: Redis,
        namespace: str,
        settings: Mapping[str, SemanticCacheSettings],
        answers: ResponseCacheSettings,
        find: Callable[[str], Awaitable[ServedModel]],
        embedder: Embedder,
        metrics: Metrics,
    ) -> None:
        """`settings` by model; of `answers` the sizes hold for the answers kept here, too."""
        self._settings = settings
        self._max_answer_bytes = answers.max_answer_bytes
        self._find = find
        self._embedder = embedder
        self._metrics = metrics.semantic_cache
        self._embedding_time = metrics.embedding_time
        self._answers = {
            model: AnswerStore(
                redis,
                f"{namespace}:semantic",
                ttl_ms=_ttl_ms(wishes),
                max_bytes=answers.max_bytes,
            )
            for model, wishes in settings.items()
        }
        self._vectors = SemanticStore(redis, namespace)
        self._groups = VectorGroups(_MAX_LOCAL_BYTES)
        self._keeper = Keeper(self._metrics, _PAUSE_S)

    def through(
        self,
        job: Job,
        given: pb.RequestOptions,
        progress: Progress,
        kind: type[Message],
        fresh: AsyncGenerator[Message, None],
        on_sent: Callable[[], None],
    ) -> AsyncGenerator[Message, None]:
        """The job's answer: one that was kept, or else `fresh`, which is closed in any case.

        `given` are the options as the client sent them; `on_sent` is called when a replica has
        been given the prompt to embed.
        """
        if job.model.name not in self._settings or not _may_be_served(given):
            return fresh
        return self._through(job, given, progress, kind, fresh, on_sent)

    async def close(self) -> None:
        """Wait until everything is kept that is to be."""
        await self._keeper.close()

    async def _through(
        self,
        job: Job,
        given: pb.RequestOptions,
        progress: Progress,
        kind: type[Message],
        fresh: AsyncGenerator[Message, None],
        on_sent: Callable[[], None],
    ) -> AsyncGenerator[Message, None]:
        async with aclosing(fresh):
            model = job.model.name
            result, place, answer = await self._look_up(job, given, on_sent)
            self._metrics.lookups.labels(model, result).inc()
            if answer is not None:
                for message in replay(answer, job, progress, kind, pb.CACHE_SOURCE_SEMANTIC):
                    yield message
                saved = progress.completion_tokens
                self._metrics.saved_tokens.labels(model).inc(saved)
                return
            recording = Recording(job.n, self._max_answer_bytes)
            async for message in fresh:
                recording.add(message)
                yield message
            if place is not None:
                self._keeper.keep(place.model, place.digest, recording, partial(self._put, place))

    async def _look_up(
        self, job: Job, given: pb.RequestOptions, on_sent: Callable[[], None]
    ) -> tuple[str, _Place | None, internal.Answer | None]:
        """What came of looking, in a word; where to keep an answer, and the answer there is."""
        if self._keeper.is_away:
            return "unavailable", None, None
        try:
            place = await self._embed(job, given, on_sent)
        except RequestError as error:
            log.warning("a prompt cannot be embedded", model=job.model.name, error=str(error))
            return "failed", None, None
        try:
            found = await self._nearest(place)
        except (RedisError, OSError) as error:
            self._keeper.note_failure("answers cannot be read", error)
            return "unavailable", None, None
        except BrokenAnswerError as error:
            log.warning("a kept answer is broken", model=place.model, error=str(error))
            return "broken", place, None
        return "miss" if found is None else "hit", place, found

    async def _embed(
        self, job: Job, given: pb.RequestOptions, on_sent: Callable[[], None]
    ) -> _Place:
        """Where the job's answer belongs. Raises RequestError."""
        wishes = self._settings[job.model.name]
        name = wishes.embedding_model
        model = job.model if name is None else await self._find(name)
        began = time.monotonic()
        deadline = min(job.deadline, began + wishes.embedding_timeout_s)
        vector = await self._embedder.embed(job, model, deadline, on_sent)
        elapsed_s = time.monotonic() - began
        self._embedding_time.labels(job.model.name).observe(elapsed_s)
        salt = job.route.cache_salt
        return _Place(
            job.model.name,
            # Of one model, for models' answers have different times.
            f"{scope_of(salt)}.{job.model.name}",
            _group_of(job, given, model.card),
            request_key(job.model.card, job.prompt_token_ids, job.options, salt),
            vector,
        )

    async def _nearest(self, place: _Place) -> internal.Answer | None:
        """The answer to the nearest prompt, if that is near enough.

        Raises RedisError, OSError and BrokenAnswerError.
        """
        group = self._groups.of(place.group, len(place.vector))
        await self._keeper.ask(self._refresh(place, group))
        self._groups.trim()
        neighbour = group.nearest(place.vector)
        if neighbour is None or neighbour.similarity < self._settings[place.model].threshold:
            return None
        digest = bytes.fromhex(neighbour.name.decode())
        value = await self._keeper.ask(self._answers[place.model].get(place.scope, digest))
        # None where the answer went before its vector, for want of room.
        return None if value is None else unseal(digest, value)

    async def _refresh(self, place: _Place, group: VectorGroup) -> None:
        max_entries = self._settings[place.model].max_entries
        change = await self._vectors.changes(place.group, group.version, max_entries)
        if change is not None:
            missing = group.missing(change.names)
            values = await self._vectors.vectors(place.group, missing)
            group.update(change.version, change.names, dict(zip(missing, values, strict=True)))

    async def _put(self, place: _Place, value: bytes) -> None:
        """Keep an answer and its vector. Raises RedisError and OSError."""
        wishes = self._settings[place.model]
        await self._answers[place.model].put(place.scope, place.digest, value)
        await self._vectors.put(
            place.group,
            place.digest.hex().encode(),
            to_bytes(place.vector),
            ttl_ms=_ttl_ms(wishes),
            max_entries=wishes.max_entries,
        )


def _may_be_served(given: pb.RequestOptions) -> bool:
    """Whether another request's answer can be one to this: not where several are wanted, nor where
    there are log-probabilities, which belong to one prompt."""
    logprobs = given.logprobs
    wants_logprobs = logprobs.HasField("top_logprobs") or logprobs.HasField("prompt_top_logprobs")
    return (
        is_repeatable(given) and given.n <= 1 and not wants_logprobs and not given.no_response_cache
    )


def _group_of(job: Job, given: pb.RequestOptions, embedding: ModelCard) -> str:
    """Name of the group whose requests may get each other's answers: a hash keyed by the tenants'
    salt over the model, what embeds, and all options."""
    options = pb.RequestOptions()
    options.CopyFrom(job.options)
    # What max_tokens is completed with depends on the prompt's length.
    options.stop.CopyFrom(given.stop)
    digest = blake2b(request_key(job.model.card, (), options, job.route.cache_salt), digest_size=16)
    for part in (embedding.name, embedding.fingerprint, embedding.precision):
        digest.update(len(part).to_bytes(8, "little") + part.encode())
    return digest.hexdigest()


def _ttl_ms(wishes: SemanticCacheSettings) -> int:
    return max(1, int(wishes.ttl_s * 1000))
