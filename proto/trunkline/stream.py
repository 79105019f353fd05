"""An answer as it arrives."""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self

import grpc

from trunkline.errors import RequestCancelledError, error_of
from trunkline.received import Received, Request, Response
from trunkline.retry import Attempts
from trunkline.types import Delta


class _Call(Protocol):
    """A running call that gives responses."""

    def __next__(self) -> Response: ...
    def cancel(self) -> bool: ...


class _Start(Protocol):
    """Starts an attempt at the call, with seconds until its deadline."""

    def __call__(self, *, timeout: float | None) -> _Call: ...


class Stream(Received, Iterator[Delta]):
    """Iterates over the deltas of an answer.

    Closing the stream, leaving its `with` block or dropping it cancels the request. Iterating
    raises the errors of `trunkline.errors`; a closed stream that had not ended raises
    RequestCancelledError.
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

    def text(self) -> str:
        """Reads to the end and returns the whole text, of the first sample if there are several.

        Raises InternalError if a sample failed.
        """
        return next(iter(self.texts()), "")

    def texts(self) -> list[str]:
        """Reads to the end and returns the whole text of each sample.

        Raises InternalError if a sample failed.
        """
        for _ in self:
            pass
        return self._whole_texts()

    def close(self) -> None:
        """Cancels the request if it is still running."""
        self._closed = True
        self._call.cancel()

    def __next__(self) -> Delta:
        while True:
            delta = self._take(self._receive())
            if delta is not None:
                return delta

    def _receive(self) -> Response:
        while True:
            try:
                return next(self._call)
            except grpc.RpcError as status:
                error = error_of(status)
                if not self._may_go_on_after(error):
                    raise error from status
                time.sleep(self._attempts.pause_s(error))
            if self._closed:
                raise RequestCancelledError("the stream is closed", reason="CANCELLED")
            self._rewind()
            self._call = self._restart(timeout=self._attempts.time_left_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
