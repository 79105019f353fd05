"""What a router has to tell a replica, merged into as few frames as the stream takes."""

import asyncio
from collections import deque

from trunkline.internal.v1 import replica_pb2 as internal

FRAME_BYTES = 1024 * 1024
"""Size after which a frame is closed, to stay below the size a replica accepts."""


class Outbox:
    """Submits and cancels in the order they came; while a frame is being sent, they gather."""

    def __init__(self) -> None:
        self._submits: deque[internal.Submit] = deque()
        self._cancels: list[int] = []
        self._news = asyncio.Event()

    def submit(self, submit: internal.Submit) -> None:
        """Send this request."""
        self._submits.append(submit)
        self._news.set()

    def cancel(self, handle: int) -> None:
        """Send word that nobody waits for this request, or do not send it at all."""
        for submit in self._submits:
            if submit.handle == handle:
                self._submits.remove(submit)
                return
        self._cancels.append(handle)
        self._news.set()

    async def next_frame(self) -> internal.ConnectRequest:
        """The next frame, as soon as there is something to say."""
        while not (self._submits or self._cancels):
            self._news.clear()
            await self._news.wait()
        frame = internal.ConnectRequest(cancels=self._cancels)
        self._cancels = []
        size_bytes = 0
        while self._submits and size_bytes < FRAME_BYTES:
            submit = self._submits.popleft()
            size_bytes += submit.ByteSize()
            frame.submits.append(submit)
        return frame
