"""Names that stand for models: aliases, weighted splits and fallback chains; in Redis.

Key, under the cluster's namespace: ``catalog`` is a hash of entries by name.
"""

from collections.abc import Awaitable, Mapping
from typing import Annotated, Literal, TypeAlias, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from cluster.registry import Registry

Name = Annotated[str, Field(min_length=1, max_length=256)]
Weight = Annotated[float, Field(gt=0, le=1e6)]


class Alias(BaseModel):
    """Another name of one model or entry."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["alias"] = "alias"
    target: Name

    @property
    def targets(self) -> tuple[str, ...]:
        """The names that it refers to."""
        return (self.target,)


class Split(BaseModel):
    """A share of the sessions for each target, in proportion to its weight."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["split"] = "split"
    weights: Annotated[dict[Name, Weight], Field(min_length=1)]

    @property
    def targets(self) -> tuple[str, ...]:
        """The names that it refers to."""
        return tuple(self.weights)


class Fallback(BaseModel):
    """The first target, or the next one when that cannot take a request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["fallback"] = "fallback"
    chain: Annotated[tuple[Name, ...], Field(min_length=2)]

    @field_validator("chain")
    @classmethod
    def _check_chain(cls, chain: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(chain)) < len(chain):
            raise ValueError(f"expected each name once, got {', '.join(chain)}")
        return chain

    @property
    def targets(self) -> tuple[str, ...]:
        """The names that it refers to."""
        return self.chain


Entry: TypeAlias = Alias | Split | Fallback
"""An entry that has its own name among its targets means the model of that name there."""

_ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="kind")])


class CatalogError(ValueError):
    """A change of the catalog that cannot be made."""


def parse_entry(text: bytes) -> Entry:
    """The entry in a value of the hash. Raises pydantic.ValidationError."""
    return _ENTRY.validate_json(text)


def check_acyclic(entries: Mapping[str, Entry], name: str) -> None:
    """Raises CatalogError if following the entry of this name leads back to it or in a circle."""
    _follow(entries, name, ())


def _follow(entries: Mapping[str, Entry], name: str, path: tuple[str, ...]) -> None:
    if name in path:
        raise CatalogError(f"{' -> '.join([*path, name])}: goes in a circle")
    if (entry := entries.get(name)) is not None:
        for target in entry.targets:
            if target != name:
                _follow(entries, target, (*path, name))


class CatalogStore:
    """Reads and writes the catalog. Methods raise redis.exceptions.RedisError."""

    def __init__(self, redis: Redis, namespace: str) -> None:
        self._redis = redis
        self._registry = Registry(redis, namespace)
        self._key = f"{namespace}:catalog"

    async def read(self) -> dict[str, bytes]:
        """The entries by name, as they are stored."""
        found = await cast(Awaitable[dict[bytes, bytes]], self._redis.hgetall(self._key))
        return {name.decode(errors="replace"): text for name, text in found.items()}

    async def entries(self) -> dict[str, Entry]:
        """The entries by name. Raises pydantic.ValidationError."""
        return {name: parse_entry(text) for name, text in (await self.read()).items()}

    async def put(self, name: str, entry: Entry, *, allow_unknown: bool = False) -> None:
        """Enter a name, in place of what it stood for.

        Raises CatalogError if a target is neither a model nor an entry (unless that is allowed,
        for models that are to come), or if entries would go in a circle.
        """
        if not allow_unknown:
            await self._check_known(name, entry)

        async def change(pipe: Pipeline) -> None:
            others = await _entries_in(pipe, self._key)
            check_acyclic(others | {name: entry}, name)
            pipe.multi()  # type: ignore[no-untyped-call]
            pipe.hset(self._key, name, entry.model_dump_json())

        await self._redis.transaction(change, self._key)

    async def remove(self, name: str) -> None:
        """Forget an entry.

        Raises CatalogError if there is none, or if others refer to it and no model has its name.
        """
        is_model = await self._registry.model(name) is not None

        async def change(pipe: Pipeline) -> None:
            entries = await _entries_in(pipe, self._key)
            if name not in entries:
                known = ", ".join(sorted(entries)) or "none"
                raise CatalogError(f"{name!r} is not in the catalog; there are: {known}")
            users = [other for other, e in entries.items() if name in e.targets and other != name]
            if users and not is_model:
                raise CatalogError(f"{name!r} is used by: {', '.join(sorted(users))}")
            pipe.multi()  # type: ignore[no-untyped-call]
            pipe.hdel(self._key, name)

        await self._redis.transaction(change, self._key)

    async def _check_known(self, name: str, entry: Entry) -> None:
        entries = await self.read()
        for target in entry.targets:
            is_entry = target in entries and target != name
            if not is_entry and await self._registry.model(target) is None:
                raise CatalogError(f"{target!r} is neither a model nor a name in the catalog")


async def _entries_in(pipe: Pipeline, key: str) -> dict[str, Entry]:
    found = await cast(Awaitable[dict[bytes, bytes]], pipe.hgetall(key))
    return {name.decode(errors="replace"): parse_entry(text) for name, text in found.items()}
