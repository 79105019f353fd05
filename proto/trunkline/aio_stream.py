"""An answer as it arrives, for asyncio."""

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Protocol, Self

import grpc.aio

from trunkline.errors import RequestCancelledError, error_of
from trunkline.received import Received, Request, Response
from trunkline.retry import Attempts
from trunkline.types import Delta
from trunkline.v1.inference_pb2 import ChatResponse, GenerateResponse


class _Call(Protocol):
    """A running call that gives responses."""

    async def read(self) -> object: ...
    def cancel(self) -> bool: ...


class _Start(Protocol):
    """Starts an attempt at the call, with seconds until its deadline."""

    def __call__(self, *, timeout: float | None) -> _Call: ...


class AsyncStream(Received, AsyncIterator[Delta]):
    """Iterates over the deltas of an answer; the twin of Stream for `async for`.

    Closing the stream, leaving its `async with` block, dropping it or cancelling the task that
    reads it cancels the request.
    """

    def __init__(self, call: _Call, restart: _Start, attempts: Attempts, request: Request) -> None:
        super().__init__(request)
        self._call = call
        self._restart = restart
        self._attempts = attempts
        self._closed = False

    @classmethod
    def open(cls, start: _Start, attempts: Attempts, request: Request) -> Self:
        """Sends the request, which is the stream's own; `start` makes each attempt at it."""
        return cls(start(timeout=attempts.time_left_s), start, attempts, request)

    async def text(self) -> str:
        """Reads to the end and returns the whole text, of the first sample if there are several.

        Raises InternalError if a sample failed.
        """
        return next(iter(await self.texts()), "")

    async def texts(self) -> list[str]:
        """Reads to the end and returns the whole text of each sample.

        Raises InternalError if a sample failed.
        """
        async for _ in self:
            pass
        return self._whole_texts()

    async def close(self) -> None:
        """Cancels the request if it is still running."""
        self._closed = True
        self._call.cancel()

    async def __anext__(self) -> Delta:
        while (response := await self._receive()) is not None:
            delta = self._take(response)
            if delta is not None:
                return delta
        raise StopAsyncIteration

    async def _receive(self) -> Response | None:
        """The next message, None at the end of the stream."""
        while True:
            try:
                message = await self._call.read()
                return message if isinstance(message, GenerateResponse | ChatResponse) else None
            except grpc.aio.AioRpcError as status:
                error = error_of(status)
                if not self._may_go_on_after(error):
                    raise error from status
                await asyncio.sleep(self._attempts.pause_s(error))
            except asyncio.CancelledError:
                if _task_is_cancelled():
                    raise
                # Nobody cancelled this task: gRPC says in this way that the call was closed.
                raise _closed() from None
            if self._closed:
                raise _closed()
            self._rewind()
            self._call = self._restart(timeout=self._attempts.time_left_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        self._call.cancel()


def _closed() -> RequestCancelledError:
    return RequestCancelledError("the stream is closed", reason="CANCELLED")


def _task_is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
