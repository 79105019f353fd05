"""One request at one replica."""

import asyncio
from collections.abc import Callable

from trunkline.internal.v1 import replica_pb2 as internal

Event = internal.SampleOutput | internal.RequestEnd


class ReplicaLost(Exception):  # noqa: N818 - it is news, not a mistake
    """The stream to the replica has ended, and with it every request that it carried."""


class ReplicaFaulty(ReplicaLost):
    """The replica has sent what cannot follow on what it sent before; the request is given up."""


class Ticket:
    """What a replica has sent for a request and nobody has taken yet.

    A slow client never holds up the stream it shares with others: its outputs are merged, one
    for each sample, and the request's own limit on tokens is the limit on their size.

    Each token is taken once, at its position: what a replica repeats is dropped, and one that
    leaves out a token is not listened to any more.
    """

    def __init__(
        self, submit: internal.Submit, cancel: Callable[["Ticket"], None], news: asyncio.Event
    ) -> None:
        """`news` is set whenever there is something to take."""
        self.handle = submit.handle
        self._cancel = cancel
        self._news = news
        indices = range(submit.first_index, submit.first_index + submit.n)
        self._positions = dict.fromkeys(indices, submit.num_generated)
        """Of each sample's next token."""
        self._outputs: dict[int, internal.SampleOutput] = {}
        self._end: internal.RequestEnd | None = None
        self._lost: ReplicaLost | None = None

    def put_output(self, output: internal.SampleOutput) -> None:
        """Add new tokens of a sample."""
        if self._positions.get(output.index) != output.position and not self._fit(output):
            return
        index, position = output.index, output.position
        self._positions[index] = position + len(output.token_ids)
        if waiting := self._outputs.get(index):
            first = waiting.position
            waiting.MergeFrom(output)
            waiting.position = first
        else:
            self._outputs[index] = output
        self._news.set()

    def put_end(self, end: internal.RequestEnd) -> None:
        """Add the last word about the request."""
        self._end = end
        self._news.set()

    def lose(self, why: str) -> None:
        """Note that nothing more will come."""
        self._lost = self._lost or ReplicaLost(why)
        self._news.set()

    def take(self) -> list[Event]:
        """What has come since the last time, the end last; nothing, if nothing has.

        Raises ReplicaLost when nothing will come any more.
        """
        events: list[Event] = list(self._outputs.values())
        if self._end is not None:
            events.append(self._end)
        if events:
            self._outputs, self._end = {}, None
        elif self._lost is not None:
            raise self._lost
        return events

    def cancel(self) -> None:
        """Tell the replica that nobody waits any more; harmless after the end."""
        self._cancel(self)

    def _fit(self, output: internal.SampleOutput) -> bool:
        """Drop the tokens that have come before; whether the rest is what comes next."""
        expected = self._positions.get(output.index)
        if expected is None or output.position > expected:
            self._give_up(output, expected)
            return False
        num_repeated = expected - output.position
        num_new = len(output.token_ids) - num_repeated
        if num_new < 0 or (num_new == 0 and not output.finish_reason):
            return False
        del output.token_ids[:num_repeated]
        del output.logprobs[:num_repeated]
        output.position = expected
        return True

    def _give_up(self, output: internal.SampleOutput, expected: int | None) -> None:
        where = "no such sample" if expected is None else f"after {expected} tokens"
        self._lost = ReplicaFaulty(
            f"the replica sent token {output.position} of sample {output.index}: {where}"
        )
        self.cancel()
        self._news.set()
