"""The gRPC service that routers speak to."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import suppress

import grpc
import structlog
from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.internal.v1.replica_pb2_grpc import ReplicaServiceServicer

from workers.replica.dispatch import Dispatch
from workers.replica.engine_thread import EngineDied, EngineThread
from workers.replica.messages import to_load
from workers.replica.router_stream import RouterStream, SlowRouter

log = structlog.get_logger(__name__)

_LOAD_PERIOD_S = 0.25
_HELLO_TIMEOUT_S = 5.0

Requests = AsyncIterator[internal.ConnectRequest]
Context = grpc.aio.ServicerContext[internal.ConnectRequest, internal.ConnectResponse]


class ReplicaServicer(ReplicaServiceServicer):
    """One stream per router; `report_load` is to be running in a task."""

    def __init__(
        self, identity: internal.ReplicaHello, dispatch: Dispatch, engine: EngineThread
    ) -> None:
        self._identity = identity
        self._dispatch = dispatch
        self._engine = engine
        self._numbers = itertools.count(1)
        self._streams: set[RouterStream] = set()
        self._no_streams = asyncio.Event()
        self._no_streams.set()

    async def Connect(  # noqa: N802 - named by the contract
        self, request_iterator: Requests, context: Context
    ) -> AsyncIterator[internal.ConnectResponse]:
        """Carry one router's requests until either side ends the stream."""
        router_id = await self._greet(request_iterator, context)
        stream = RouterStream(next(self._numbers))
        self._streams.add(stream)
        self._no_streams.clear()
        # Not in a finally clause: while it waits for the transport, a generator that nobody reads
        # any more would only run it when it is collected.
        context.add_done_callback(lambda _: self._forget(stream))  # type: ignore[arg-type]
        log.info("router connected", router=router_id)
        stream.put_load(self._load())
        yield internal.ConnectResponse(hello=self._identity)
        reader = asyncio.create_task(self._read(request_iterator, stream))
        reader.add_done_callback(lambda task: _end(stream, task))
        try:
            async for frame in stream.frames():
                yield frame
        except SlowRouter as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except EngineDied as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        finally:
            reader.cancel()

    async def report_load(self) -> None:
        """Tell all routers how busy the replica is, again and again."""
        while True:
            self._send_load()
            await asyncio.sleep(_LOAD_PERIOD_S)

    async def drain(self, timeout_s: float) -> None:
        """Take no new requests, let those under way finish, then end the streams.

        What has not finished after `timeout_s` is handed back to the routers it came from.
        """
        self._dispatch.draining = True
        self._send_load()
        try:
            async with asyncio.timeout(timeout_s):
                await self._dispatch.wait_idle()
        except TimeoutError:
            num_moved = self._dispatch.hand_back()
            log.warning("requests are handed back", timeout_s=timeout_s, requests=num_moved)
        for stream in self._streams:
            stream.end()
        # Routers that do not read any more are cut off when the server stops.
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._no_streams.wait()

    def fail(self, error: EngineDied) -> None:
        """End all streams: routers then take their requests elsewhere."""
        self._dispatch.draining = True
        for stream in self._streams:
            stream.fail(error)

    async def _greet(self, request_iterator: Requests, context: Context) -> str:
        """The router's id, if it means this very incarnation; aborts the call otherwise."""
        try:
            async with asyncio.timeout(_HELLO_TIMEOUT_S):
                hello = (await anext(request_iterator)).hello
        except (TimeoutError, StopAsyncIteration):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no hello came")
        addressed = (hello.replica_id, hello.epoch)
        if addressed != (self._identity.replica_id, self._identity.epoch):
            this = f"{self._identity.replica_id}@{self._identity.epoch}"
            message = f"this is {this}, not {hello.replica_id}@{hello.epoch}"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, message)
        return hello.router_id

    async def _read(self, request_iterator: Requests, stream: RouterStream) -> None:
        async for frame in request_iterator:
            for submit in frame.submits:
                self._dispatch.submit(stream, submit)
            for handle in frame.cancels:
                self._dispatch.cancel(stream, handle)

    def _forget(self, stream: RouterStream) -> None:
        stream.end()
        self._dispatch.drop(stream)
        self._streams.discard(stream)
        if not self._streams:
            self._no_streams.set()

    def _send_load(self) -> None:
        load = self._load()
        for stream in self._streams:
            stream.put_load(load)

    def _load(self) -> internal.Load:
        return to_load(self._engine.load, draining=self._dispatch.draining)


def _end(stream: RouterStream, reader: asyncio.Task[None]) -> None:
    """When there is nothing more to read, the stream has ended; so it has when reading failed."""
    if not reader.cancelled() and (error := reader.exception()) is not None:
        log.error("a router's stream cannot be read", exc_info=error)
    stream.end()
