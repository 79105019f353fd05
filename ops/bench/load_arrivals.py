"""When requests are sent."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol, TypeAlias

Send: TypeAlias = Callable[[int, float], Coroutine[None, None, None]]
"""Sends the request of an index, which is due at a time of the monotonic clock."""


class Arrivals(Protocol):
    """A way to pace requests."""

    async def drive(self, count: int, send: Send) -> None:
        """Send requests 0 to count - 1; returns when all are answered."""


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """A Poisson process: requests come whether or not earlier ones are answered."""

    rate_per_s: float
    seed: int

    def offsets_s(self, count: int) -> list[float]:
        """When each request is due, in seconds from the start."""
        random = Random(self.seed)
        due_s = 0.0
        return [due_s := due_s + random.expovariate(self.rate_per_s) for _ in range(count)]

    async def drive(self, count: int, send: Send) -> None:
        """Send each request when it is due."""
        await _send_at(self.offsets_s(count), send)

    def __str__(self) -> str:
        return f"{self.rate_per_s:g} requests/s"


@dataclass(frozen=True, slots=True)
class Timetable:
    """Requests come at times that are given, whether or not earlier ones are answered."""

    offsets_s: Sequence[float]
    """Seconds from the start, in order; one for each request."""

    async def drive(self, count: int, send: Send) -> None:
        """Send each request when it is due."""
        await _send_at(self.offsets_s[:count], send)


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """Clients that each send their next request when the last one is answered."""

    clients: int

    async def drive(self, count: int, send: Send) -> None:
        """Share the requests among the clients."""
        indices = iter(range(count))

        async def client() -> None:
            for index in indices:
                await send(index, time.monotonic())

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self.clients, count)):
                group.create_task(client())

    def __str__(self) -> str:
        return f"{self.clients} clients"


async def _send_at(offsets_s: Sequence[float], send: Send) -> None:
    start_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for index, offset_s in enumerate(offsets_s):
            await asyncio.sleep(start_s + offset_s - time.monotonic())
            group.create_task(send(index, start_s + offset_s))
