"""The door of one router."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.errors import Reason, RequestError
from router.service_rate import ServiceRate


class Gate:
    """Lets in a limited number of requests, and none any more once it is closed.

    The limit bounds memory only: whose request is turned away when there are too many, is for the
    queue to say, which sees all that wait.
    """

    def __init__(self, max_in_flight: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_in_flight = max_in_flight
        self._rate = ServiceRate(clock)
        self._in_flight = 0
        self._open = True
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def in_flight(self) -> int:
        """Requests let in that have not ended."""
        return self._in_flight

    @property
    def is_open(self) -> bool:
        """Whether requests are let in at all."""
        return self._open

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Be under way. Raises RequestError (QUEUE_FULL, SHUTTING_DOWN) if that cannot be."""
        if not self._open:
            raise RequestError(
                Reason.SHUTTING_DOWN, "this router is shutting down", retry_after_s=1.0
            )
        if self._in_flight >= self._max_in_flight:
            raise RequestError(
                Reason.QUEUE_FULL,
                f"{self._in_flight} requests are under way, which is the limit",
                retry_after_s=self._rate.time_to_next_end_s(),
            )
        if self._in_flight == 0:
            self._rate.begin()
        self._in_flight += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            self._rate.end()
            if self._in_flight == 0:
                self._empty.set()

    def close(self) -> None:
        """Let nothing in any more."""
        self._open = False

    async def drained(self) -> None:
        """Wait until nothing is under way."""
        await self._empty.wait()
