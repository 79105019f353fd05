"""The requests under way, between the streams they came by and the engine."""

import asyncio
from dataclasses import dataclass

import structlog
from trunkline.internal.v1 import replica_pb2 as internal

from cluster.errors import Reason, RequestError
from workers.engine.request import FinishReason, SampleOutput
from workers.replica.engine_thread import EngineDied, EngineThread, StepReport
from workers.replica.messages import MOVED, to_failure, to_output, to_request
from workers.replica.router_stream import RouterStream

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Ticket:
    """Whom a request's outputs go to, and what has been seen of its samples."""

    stream: RouterStream
    handle: int
    request_id: str
    num_samples: int
    num_failed: int = 0
    error: RequestError | None = None


class Dispatch:
    """Hands requests to the engine and its outputs back. Every submit gets exactly one end.

    All methods are called on the event loop.
    """

    def __init__(self, engine: EngineThread, max_requests: int) -> None:
        """More than `max_requests` at a time are refused, before they reach the engine."""
        self._engine = engine
        self._max_requests = max_requests
        self._tickets: dict[str, _Ticket] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    async def wait_idle(self) -> None:
        """Return when no request is under way."""
        await self._idle.wait()

    def submit(self, stream: RouterStream, submit: internal.Submit) -> None:
        """Take a request, or say why not."""
        engine_id = _engine_id(stream, submit.handle)
        try:
            self._check_room(engine_id)
            self._engine.submit(to_request(submit, engine_id))
        except RequestError as error:
            log.info("request refused", request_id=submit.request_id, why=str(error))
            stream.put_end(to_failure(error, submit.handle))
        except EngineDied as error:
            refusal = RequestError(Reason.SHUTTING_DOWN, str(error))
            stream.put_end(to_failure(refusal, submit.handle))
        else:
            self._idle.clear()
            self._tickets[engine_id] = _Ticket(
                stream, submit.handle, submit.request_id, submit.n or 1
            )

    def cancel(self, stream: RouterStream, handle: int) -> None:
        """Forget a request that nobody waits for; harmless after its end."""
        engine_id = _engine_id(stream, handle)
        if engine_id in self._tickets:
            self._engine.cancel(engine_id)
            self._end(engine_id, RequestError(Reason.CANCELLED, "cancelled by the router"))

    def drop(self, stream: RouterStream) -> None:
        """Cancel all requests of a stream that has ended."""
        for engine_id in [i for i, t in self._tickets.items() if t.stream is stream]:
            self._engine.cancel(engine_id)
            self._forget(engine_id)

    def hand_back(self) -> int:
        """Have routers take everything that is under way elsewhere; returns how many requests.

        They go on after the tokens sent until now: what the engine still computes is dropped.
        """
        for engine_id in (moved := list(self._tickets)):
            self._engine.cancel(engine_id)
            ticket = self._forget(engine_id)
            ticket.stream.put_end(internal.RequestEnd(handle=ticket.handle, failed=MOVED))
        return len(moved)

    def report(self, report: StepReport) -> None:
        """Send what a turn of the engine has to say."""
        for refusal in report.refusals:
            if refusal.request_id in self._tickets:
                self._end(refusal.request_id, refusal.error)
        for output in report.outputs:
            # Outputs of cancelled requests may still be on their way here.
            if ticket := self._tickets.get(output.request_id):
                self._pass_on(ticket, output)

    def _check_room(self, engine_id: str) -> None:
        if engine_id in self._tickets:
            raise RequestError(Reason.INVALID_ARGUMENT, "the handle is in use")
        if self.draining:
            raise RequestError(Reason.SHUTTING_DOWN, "the replica is draining")
        if len(self._tickets) >= self._max_requests:
            raise RequestError(Reason.QUEUE_FULL, "the replica's queue is full")

    def _pass_on(self, ticket: _Ticket, output: SampleOutput) -> None:
        _note_end(ticket, output)
        if output.token_ids or output.finish_reason in _WORTH_TELLING:
            ticket.stream.put_output(to_output(output, ticket.handle))
        if output.request_done:
            if ticket.error is not None:
                self._end(output.request_id, ticket.error)
            else:
                self._finish(output)

    def _finish(self, output: SampleOutput) -> None:
        ticket = self._forget(output.request_id)
        end = internal.RequestEnd(handle=ticket.handle, finished=internal.Finished())
        ticket.stream.put_end(end)

    def _end(self, engine_id: str, error: RequestError) -> None:
        ticket = self._forget(engine_id)
        log.info("request ended", request_id=ticket.request_id, why=str(error))
        ticket.stream.put_end(to_failure(error, ticket.handle))

    def _forget(self, engine_id: str) -> _Ticket:
        ticket = self._tickets.pop(engine_id)
        if not self._tickets:
            self._idle.set()
        return ticket


_WORTH_TELLING = (FinishReason.STOP, FinishReason.LENGTH, FinishReason.ERROR)


def _note_end(ticket: _Ticket, output: SampleOutput) -> None:
    """A passed deadline fails the whole request, errors only if no sample is left without one."""
    if output.finish_reason is FinishReason.DEADLINE:
        ticket.error = RequestError(Reason.DEADLINE_EXCEEDED, "the deadline has passed")
    elif output.finish_reason is FinishReason.ERROR:
        log.error(
            "sample failed",
            request_id=ticket.request_id,
            index=output.index,
            error=output.error,
        )
        ticket.num_failed += 1
        if ticket.num_failed == ticket.num_samples:
            ticket.error = RequestError(Reason.INTERNAL, output.error)


def _engine_id(stream: RouterStream, handle: int) -> str:
    """Unique among the requests of all routers."""
    return f"{stream.number}/{handle}"
