"""One request at one replica."""

import asyncio
from collections.abc import Callable

from trunkline.internal.v1 import replica_pb2 as internal

Event = internal.SampleOutput | internal.RequestEnd


class ReplicaLost(Exception):  # noqa: N818 - it is news, not a mistake
    """The stream to the replica has ended, and with it every request that it carried."""


class Ticket:
    """What a replica has sent for a request and nobody has taken yet.

    Events are kept without bound so that a slow client never holds up the stream it shares with
    others; a request's own limit on tokens is the limit on its events.
    """

    def __init__(self, handle: int, sequences: int, cancel: Callable[["Ticket"], None]) -> None:
        self.handle = handle
        self.sequences = sequences
        self._cancel = cancel
        self._events: list[Event] = []
        self._lost: str | None = None
        self._news = asyncio.Event()

    def put(self, event: Event) -> None:
        """Add what came from the replica."""
        self._events.append(event)
        self._news.set()

    def lose(self, why: str) -> None:
        """Note that nothing more will come."""
        self._lost = why
        self._news.set()

    async def take(self) -> list[Event]:
        """All events since the last time, at least one. Raises ReplicaLost when none will come."""
        await self._news.wait()
        if not self._events:
            raise ReplicaLost(self._lost)
        events, self._events = self._events, []
        if self._lost is None:
            self._news.clear()
        return events

    def cancel(self) -> None:
        """Tell the replica that nobody waits any more; harmless after the end."""
        self._cancel(self)
