"""The one stream between this router and one incarnation of a replica."""

import asyncio
import itertools
from collections.abc import Callable
from contextlib import suppress
from random import Random

import grpc
import structlog
from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.internal.v1.replica_pb2_grpc import ReplicaServiceStub

from cluster.registry import ReplicaRecord
from router.fleet.breaker import Breaker
from router.fleet.load_estimate import Booking, LoadEstimate
from router.fleet.outbox import Outbox
from router.fleet.rounds import Rounds
from router.fleet.ticket import Ticket
from router.patience import Patience

log = structlog.get_logger(__name__)

MAX_FRAME_BYTES = 64 * 1024 * 1024
_RETRY_FIRST_S = 0.1
_RETRY_MOST_S = 2.0
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.max_send_message_length", MAX_FRAME_BYTES),
    # A connection of our own: with a shared one, a retry would wait for another's backoff.
    ("grpc.use_local_subchannel_pool", 1),
)

Stream = grpc.aio.StreamStreamCall[internal.ConnectRequest, internal.ConnectResponse]


class StaleReplica(Exception):  # noqa: N818 - it is news, not a mistake
    """Another replica, or another epoch of it, answers at the address."""


class ReplicaLink:
    """Keeps a stream open, carries requests over it, and knows the replica's load.

    `run` is to be running in a task; `on_change` is called when the replica begins or ceases
    to take requests, or tells its load. It begins with the first report of its load.
    """

    def __init__(
        self,
        record: ReplicaRecord,
        estimate: LoadEstimate,
        breaker: Breaker,
        router_id: str,
        silence_s: float,
        on_change: Callable[[], None],
    ) -> None:
        self.record = record
        self.member = record.member
        """Name of the incarnation at the other end."""
        self.estimate = estimate
        self.breaker = breaker
        self.registered = True
        self._hello = internal.RouterHello(
            router_id=router_id, replica_id=record.replica_id, epoch=record.epoch
        )
        self._silence_s = silence_s
        self._on_change = on_change
        self._open = False
        self._accepting = False
        self._handles = itertools.count(1)
        self._tickets: dict[int, Ticket] = {}
        self._probe: int | None = None
        """Handle of the request that tries whether the replica works again."""
        self._outbox = Outbox()
        self._rounds = Rounds(self._hand_on)
        self._bookings: dict[int, Booking] = {}
        self._reserved: Booking | None = None
        self._log = log.bind(replica=record.member, address=record.address)

    @property
    def is_ready(self) -> bool:
        """Whether new requests may be sent there."""
        return self.registered and self._accepting and self.breaker.lets_through

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return not self._tickets

    def reserve(self, sequences: int, prefill_tokens: int) -> None:
        """Count what the next request submitted will have to compute, already now."""
        if self._reserved is not None:
            self.estimate.release(self._reserved)
        self._reserved = self.estimate.book(sequences, prefill_tokens)

    def submit(self, submit: internal.Submit, news: asyncio.Event) -> Ticket:
        """Send a request, whose handle is set here; what was reserved last is for it.

        `news` is set whenever something has come of it.
        """
        submit.handle = next(self._handles)
        ticket = Ticket(submit, self._cancel, news)
        if self.breaker.send():
            self._probe = submit.handle
            self._on_change()
        self._tickets[submit.handle] = ticket
        booking, self._reserved = self._reserved, None
        self._bookings[submit.handle] = booking or self.estimate.book(
            submit.n, len(submit.prompt_token_ids)
        )
        self._outbox.submit(submit)
        return ticket

    def note_fault(self) -> None:
        """It has failed a request in a way that may be its own."""
        if self.breaker.fail():
            self._log.warning("replica fails requests", cooldown_s=self.breaker.cooldown_s)
            loop = asyncio.get_running_loop()
            loop.call_later(self.breaker.cooldown_s, self._on_change)
            self._on_change()

    async def run(self) -> None:
        """Keep the stream open until cancelled, or until the replica proves to be another one."""
        random = Random()
        delay_s = _RETRY_FIRST_S
        while True:
            was_open = False
            try:
                await self._connect()
            except StaleReplica as error:
                self._log.warning("replica is another one now", error=str(error))
                return
            except (grpc.aio.AioRpcError, TimeoutError, EOFError) as error:
                self._log.warning("no stream to replica", error=_describe(error))
            finally:
                was_open = self._lose_all()
            delay_s = _RETRY_FIRST_S if was_open else min(2 * delay_s, _RETRY_MOST_S)
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))

    async def _connect(self) -> None:
        async with grpc.aio.insecure_channel(self.record.address, _CHANNEL_OPTIONS) as channel:
            stream = ReplicaServiceStub(channel).Connect()
            sender = asyncio.create_task(self._send(stream, self._outbox))
            try:
                async with Patience(self._silence_s) as patience:
                    self._greet((await patience.wait(self._read(stream))).hello)
                    while True:
                        self._receive(await patience.wait(self._read(stream)))
            finally:
                sender.cancel()
                stream.cancel()

    async def _send(self, stream: Stream, outbox: Outbox) -> None:
        # A stream that has ended fails here and at the reader, which reports it.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await stream.write(internal.ConnectRequest(hello=self._hello))
            while True:
                await stream.write(await outbox.next_frame())

    async def _read(self, stream: Stream) -> internal.ConnectResponse:
        try:
            frame = await stream.read()
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                raise StaleReplica(error.details()) from error
            raise
        if not isinstance(frame, internal.ConnectResponse):
            raise EOFError("the replica ended the stream")
        return frame

    def _greet(self, hello: internal.ReplicaHello) -> None:
        if (hello.replica_id, hello.epoch) != (self._hello.replica_id, self._hello.epoch):
            raise StaleReplica(f"{hello.replica_id}@{hello.epoch} answers")
        self._open = True
        self._log.info("stream to replica open")

    def _receive(self, frame: internal.ConnectResponse) -> None:
        if frame.outputs or frame.ends:
            self._rounds.add(frame)
        if frame.HasField("load"):
            self.estimate.report(frame.load)
            self._accepting = not frame.load.draining
            self._on_change()

    def _hand_on(self, frame: internal.ConnectResponse) -> None:
        if frame.outputs:
            self._note_answer()
        for output in frame.outputs:
            handle = output.handle
            if ticket := self._tickets.get(handle):
                self.estimate.begin(self._bookings[handle])
                ticket.put_output(output)
        for end in frame.ends:
            if ticket := self._release(end.handle):
                ticket.put_end(end)

    def _note_answer(self) -> None:
        was_through = self.breaker.lets_through
        self.breaker.succeed()
        if not was_through:
            self._on_change()

    def _cancel(self, ticket: Ticket) -> None:
        if self._release(ticket.handle):
            self._outbox.cancel(ticket.handle)

    def _release(self, handle: int) -> Ticket | None:
        ticket = self._tickets.pop(handle, None)
        if ticket and handle == self._probe:
            self._probe = None
            self.breaker.end_probe()
            self._on_change()
        if ticket:
            self.estimate.release(self._bookings.pop(handle))
        return ticket

    def _lose_all(self) -> bool:
        """Give up what was under way; returns whether the stream had been open."""
        was_open, self._open = self._open, False
        self._set_accepting(False)
        self._outbox = Outbox()
        self._rounds.flush()
        if self._tickets:
            self.note_fault()
        for handle in list(self._tickets):
            if ticket := self._release(handle):
                ticket.lose(f"lost the stream to replica {self.member}")
        return was_open

    def _set_accepting(self, accepting: bool) -> None:
        if accepting != self._accepting:
            self._accepting = accepting
            self._on_change()


def _describe(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__
