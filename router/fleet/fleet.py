"""All models and replicas, as the registry tells of them."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence

import structlog
from redis.exceptions import RedisError

from cluster.errors import Reason, RequestError, invalid
from cluster.model_card import ModelCard
from cluster.prefix.follower import PrefixFollower
from cluster.registry import Registry, ReplicaRecord
from router.fleet.load_estimate import LoadEstimate
from router.fleet.replica_set import ReplicaSet
from router.fleet.served_model import ServedModel
from router.text.codec import TextCodec

log = structlog.get_logger(__name__)

_MAX_NAME_CHARS = 256
_LOOK_UP_S = 5.0


class Fleet:
    """Follows the registry; while that is away, everything stays as it was last seen.

    `run` is to be running in a task. A model once seen stays known, so that requests can wait
    while its replicas are being replaced.
    """

    def __init__(
        self,
        registry: Registry,
        prefixes: PrefixFollower,
        make_replicas: Callable[[], ReplicaSet],
        on_model: Callable[[ServedModel], Awaitable[None]],
    ) -> None:
        self._registry = registry
        self._prefixes = prefixes
        self._make_replicas = make_replicas
        self._on_model = on_model
        self._models: dict[str, ServedModel] = {}
        self._learning = asyncio.Lock()
        self._problems: dict[str, str] = {}
        self._followed_at = time.monotonic()

    @property
    def models(self) -> list[ServedModel]:
        """All models known, by name."""
        return [self._models[name] for name in sorted(self._models)]

    @property
    def estimates(self) -> list[LoadEstimate]:
        """What each replica of each model is believed to have to do."""
        return [e for model in self._models.values() for e in model.replicas.estimates]

    @property
    def age_s(self) -> float:
        """How old the knowledge of the registry is."""
        return time.monotonic() - self._followed_at

    async def run(self) -> None:
        """Follow the registry, and what its replicas have cached, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_registry(), name="registry")
            tasks.create_task(self._prefixes.run(), name="prefixes")

    def knows(self, name: str) -> bool:
        """Whether a model of this name has been seen."""
        return name in self._models

    async def find(self, name: str) -> ServedModel:
        """The model of this name, or the only one if `name` is empty.

        Raises RequestError if there is none such, or if it cannot be known now.
        """
        if not name:
            return self._only_model()
        if len(name) > _MAX_NAME_CHARS:
            raise invalid("model", name, f"at most {_MAX_NAME_CHARS} characters")
        model = self._models.get(name) or await self._look_up(name)
        if model is None:
            raise RequestError(
                Reason.MODEL_NOT_FOUND,
                f"model {name!r} is not served here",
                field="model",
                value=name,
                accepted=self._names(),
            )
        return model

    async def close(self) -> None:
        """Close all links."""
        await asyncio.gather(*(model.replicas.close() for model in self._models.values()))

    def _only_model(self) -> ServedModel:
        if not self._models:
            raise RequestError(Reason.NO_REPLICA, "no model is served yet", retry_after_s=1.0)
        if len(self._models) > 1:
            raise invalid("model", "", self._names())
        return next(iter(self._models.values()))

    def _names(self) -> str:
        return f"one of: {', '.join(sorted(self._models))}" if self._models else "none yet"

    async def _look_up(self, name: str) -> ServedModel | None:
        """A model of which no replica has been seen yet; it may have none just now."""
        try:
            async with asyncio.timeout(_LOOK_UP_S):
                return await self._learn(name)
        except (RedisError, OSError) as error:
            raise RequestError(
                Reason.NO_REPLICA,
                f"model {name!r} is not known here, and the registry cannot be asked",
                retry_after_s=1.0,
            ) from error
        except ValueError as error:
            raise RequestError(
                Reason.NO_REPLICA, f"model {name!r} cannot be served: its card is broken"
            ) from error

    async def _follow_registry(self) -> None:
        async for records in self._registry.watch():
            await self._follow(records)
            self._followed_at = time.monotonic()

    async def _follow(self, records: Sequence[ReplicaRecord]) -> None:
        by_model: dict[str, list[ReplicaRecord]] = defaultdict(list)
        for record in records:
            by_model[record.model].append(record)
        for name in by_model.keys() | self._models.keys():
            await self._follow_model(name, by_model[name])
        self._prefixes.follow(
            {
                record.member: self._models[record.model].prefixes
                for record in records
                if record.model in self._models
            }
        )

    async def _follow_model(self, name: str, records: Sequence[ReplicaRecord]) -> None:
        model = self._models.get(name)
        try:
            if model is None or model.replicas.has_news(records):
                model = await self._learn(name) or model
            self._problems.pop(name, None)
        except (RedisError, OSError, ValueError) as error:
            self._report(name, str(error))
        if model is not None:
            model.replicas.follow(records)

    def _report(self, name: str, problem: str) -> None:
        """Log what is wrong with a model's card: once, not each time it is tried again."""
        if self._problems.get(name) != problem:
            self._problems[name] = problem
            log.error("model card cannot be used", model=name, error=problem)

    async def _learn(self, name: str) -> ServedModel | None:
        """Read the model's card, and make its text side if the card is new.

        Raises RedisError, OSError, and ValueError if the card is broken.
        """
        card = await self._registry.model(name)
        async with self._learning:
            known = self._models.get(name)
            if card is None or (known is not None and known.card == card):
                return known
            model = await self._make(card, known)
            self._models[name] = model
            log.info("model known", model=name, fingerprint=card.fingerprint)
            await self._on_model(model)
            return model

    async def _make(self, card: ModelCard, known: ServedModel | None) -> ServedModel:
        codec = await asyncio.to_thread(TextCodec, card)
        return ServedModel(card, codec, known.replicas if known else self._make_replicas())
