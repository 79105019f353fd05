"""What a replica has to tell one router, merged into as few frames as the stream takes."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from trunkline.internal.v1 import replica_pb2 as internal

_FRAME_TOKENS = 64 * 1024
"""Tokens after which a frame is closed, to stay below the size that a router accepts."""
_MAX_PENDING_TOKENS = 1024 * 1024
"""Tokens that may wait for a slow router."""


class SlowRouter(Exception):  # noqa: N818 - it is what the router is, not what we did
    """A router does not read what is sent to it; keeping more for it would be without bound."""


class RouterStream:
    """Gathers frames while the last one is being sent: a step's outputs travel together."""

    def __init__(self, number: int) -> None:
        """`number` is unique among the streams of this replica."""
        self.number = number
        self._frames: deque[internal.ConnectResponse] = deque()
        self._open_tokens = 0
        self._pending_tokens = 0
        self._ended = False
        self._error: Exception | None = None
        self._news = asyncio.Event()

    def put_output(self, output: internal.SampleOutput) -> None:
        """Send new tokens of a request, or its embedding, of which a value counts as a token."""
        num_values = len(output.embedding) // 4
        num_tokens = 1 + len(output.token_ids) + len(output.prompt_logprobs) + num_values
        self._open_frame().outputs.append(output)
        self._open_tokens += num_tokens
        self._pending_tokens += num_tokens
        if self._pending_tokens > _MAX_PENDING_TOKENS:
            self.fail(SlowRouter("the router does not read its stream"))

    def put_end(self, end: internal.RequestEnd) -> None:
        """Send the last word about a request."""
        self._open_frame().ends.append(end)

    def put_load(self, load: internal.Load) -> None:
        """Send a load report, in place of one that still waits."""
        self._open_frame().load.CopyFrom(load)

    def end(self) -> None:
        """End the stream after what has been put."""
        self._ended = True
        self._news.set()

    def fail(self, error: Exception) -> None:
        """End the stream at once; `frames` raises `error`."""
        self._error = error
        self._frames.clear()
        self._news.set()

    async def frames(self) -> AsyncIterator[internal.ConnectResponse]:
        """Everything that is put, until the end."""
        while True:
            await self._news.wait()
            if self._error is not None:
                raise self._error
            if self._frames:
                yield self._take()
            elif self._ended:
                return
            else:
                self._news.clear()

    def _open_frame(self) -> internal.ConnectResponse:
        if not self._frames or self._open_tokens >= _FRAME_TOKENS:
            self._frames.append(internal.ConnectResponse())
            self._open_tokens = 0
        self._news.set()
        return self._frames[-1]

    def _take(self) -> internal.ConnectResponse:
        frame = self._frames.popleft()
        if not self._frames:
            self._pending_tokens = self._open_tokens = 0
        return frame
