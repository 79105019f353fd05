"""One request at one replica."""

import asyncio
from collections.abc import Callable

from trunkline.internal.v1 import replica_pb2 as internal

Event = internal.SampleOutput | internal.RequestEnd


class ReplicaLost(Exception):  # noqa: N818 - it is news, not a mistake
    """The stream to the replica has ended, and with it every request that it carried."""


class Ticket:
    """What a replica has sent for a request and nobody has taken yet.

    A slow client never holds up the stream it shares with others: its outputs are merged, one
    for each sample, and the request's own limit on tokens is the limit on their size.
    """

    def __init__(self, handle: int, sequences: int, cancel: Callable[["Ticket"], None]) -> None:
        self.handle = handle
        self.sequences = sequences
        self._cancel = cancel
        self._outputs: dict[int, internal.SampleOutput] = {}
        self._end: internal.RequestEnd | None = None
        self._lost: str | None = None
        self._news = asyncio.Event()

    def put_output(self, output: internal.SampleOutput) -> None:
        """Add new tokens of a sample."""
        if waiting := self._outputs.get(output.index):
            waiting.MergeFrom(output)
        else:
            self._outputs[output.index] = output
        self._news.set()

    def put_end(self, end: internal.RequestEnd) -> None:
        """Add the last word about the request."""
        self._end = end
        self._news.set()

    def lose(self, why: str) -> None:
        """Note that nothing more will come."""
        self._lost = why
        self._news.set()

    async def take(self) -> list[Event]:
        """What has come since the last time, at least one event, the end last.

        Raises ReplicaLost when nothing will come any more.
        """
        await self._news.wait()
        events: list[Event] = list(self._outputs.values())
        if self._end is not None:
            events.append(self._end)
        if not events:
            raise ReplicaLost(self._lost)
        self._outputs, self._end = {}, None
        if self._lost is None:
            self._news.clear()
        return events

    def cancel(self) -> None:
        """Tell the replica that nobody waits any more; harmless after the end."""
        self._cancel(self)
