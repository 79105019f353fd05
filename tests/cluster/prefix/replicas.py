"""Replicas without engines, whose way to Redis is not to be relied on."""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from enum import Enum, auto
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from cluster.prefix.block_log import BlockLog
from cluster.prefix.events import CacheChange, CacheEvents, Update
from cluster.prefix.publisher import PrefixPublisher

LEASE_S = 0.06
T = TypeVar("T")


class Fault(Enum):
    """What becomes of a replica's next words to Redis."""

    LOST = auto()
    """They do not arrive."""
    UNANSWERED = auto()
    """They arrive, but the replica does not learn of it."""
    LATE = auto()
    """They seem lost, and arrive later."""
    REPEATED = auto()
    """They arrive twice."""


class FaultyLog(BlockLog):
    """Goes wrong as it is told to."""

    def __init__(self, redis: Redis, namespace: str, member: str) -> None:
        super().__init__(redis, namespace, member, LEASE_S)
        self.faults: list[Fault] = []
        self.late: list[Callable[[], Coroutine[Any, Any, Any]]] = []

    async def append(self, update: Update) -> bool:
        base = super().append
        return await self._send(lambda: base(update))

    async def rewrite(
        self, number: int, resident: Collection[bytes], lowered: Collection[bytes]
    ) -> int:
        base = super().rewrite
        return await self._send(lambda: base(number, resident, lowered))

    async def renew(self, number: int, num_resident: int, num_lowered: int) -> bool:
        base = super().renew
        return await self._send(lambda: base(number, num_resident, num_lowered))

    async def deliver_late(self) -> None:
        """What was held up arrives now, the last first, unless Redis has just gone away."""
        while self.late:
            with suppress(RedisError):
                await self.late.pop()()

    async def _send(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if not self.faults:
            return await call()
        fault = self.faults.pop(0)
        if fault is Fault.LATE:
            self.late.append(call)
        elif fault is not Fault.LOST:
            answer = await call()
            if fault is Fault.REPEATED:
                return await call() and answer
        raise RedisConnectionError(f"made up: {fault.name}")


class FakeCache:
    """An incarnation of a replica: what its engine has cached, and who tells of it."""

    def __init__(self, redis: Redis, namespace: str, member: str) -> None:
        self.member = member
        self.cached: set[bytes] = set()
        """On the device."""
        self.lowered: set[bytes] = set()
        """In host memory only."""
        self.log = FaultyLog(redis, namespace, member)
        self.publisher = PrefixPublisher(self.log, LEASE_S)
        self._events = CacheEvents()
        self._running = asyncio.create_task(self.publisher.run())

    def store(self, blocks: Collection[bytes]) -> None:
        for block in blocks:
            if block not in self.cached:
                self.cached.add(block)
                self.lowered.discard(block)
                self._events.note(CacheChange.STORED, block)

    def lower(self, blocks: Collection[bytes]) -> None:
        for block in blocks:
            if block not in self.lowered:
                self.lowered.add(block)
                self.cached.discard(block)
                self._events.note(CacheChange.LOWERED, block)

    def remove(self, blocks: Collection[bytes]) -> None:
        for block in blocks:
            if block in self.cached | self.lowered:
                self.cached.discard(block)
                self.lowered.discard(block)
                self._events.note(CacheChange.REMOVED, block)

    def clear(self) -> None:
        self.cached.clear()
        self.lowered.clear()
        self._events.note_cleared()

    def tell(self) -> None:
        """A turn of the engine has ended."""
        self.publisher.note(self._events.take())

    async def leave(self) -> None:
        """Stop in order."""
        self._running.cancel()
        await asyncio.wait([self._running])

    async def crash(self) -> None:
        """Stop without another word."""
        self.log.faults = []
        self.log.delete = _nothing  # type: ignore[method-assign]
        await self.leave()


async def _nothing() -> None:
    pass
