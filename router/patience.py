"""A limit on how long one may wait, again and again."""

import asyncio
from collections.abc import Awaitable
from types import TracebackType
from typing import Self, TypeVar

Result = TypeVar("Result")


class Patience:
    """A context that raises TimeoutError when one of its waits takes longer than the limit.

    One timer serves all of them, since asyncio.timeout around the writing of each token takes a
    tenth of all the time that a router has for a token.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        """When the wait under way has begun, on the loop's clock."""
        self._timeout = asyncio.timeout(None)
        self._timer = self._loop.call_later(limit_s, self._look)

    async def wait(self, awaitable: Awaitable[Result]) -> Result:
        """The result of `awaitable`, which is cancelled if it takes too long."""
        self._since = self._loop.time()
        result = await awaitable
        self._since = None
        return result

    def _look(self) -> None:
        now = self._loop.time()
        end = self._limit_s + (now if self._since is None else self._since)
        if end <= now:
            self._timeout.reschedule(now)
        else:
            self._timer = self._loop.call_at(end, self._look)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, traceback)
