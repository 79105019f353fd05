"""Answering a client that may leave at any time."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from cluster.errors import RequestError
from router.http.errors import request_error_content
from router.patience import Patience

DONE = b"data: [DONE]\n\n"
"""The event that ends a stream."""

T = TypeVar("T")


def event(content: Mapping[str, Any]) -> bytes:
    """A server-sent event with a JSON object."""
    return b"data: " + to_json(content) + b"\n\n"


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which runs in a task of its own.

    When the client leaves before, cancels the work, waits for its end and raises
    ClientDisconnect. To be called when the request's body has been read.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events, of which there is at least one.

    The response starts with the first event, so that a failure before it has a status of its own; a
    later failure is the last event. When the client leaves, or has not taken an event within
    `stall_s`, `events` is closed.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], stall_s: float) -> None:
        # The second header keeps nginx from holding events back.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, headers=headers)
        self._events = events
        self._stall_s = stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events, as an ASGI application."""
        try:
            await until_gone(receive, self._send_all(send))
        except (ClientDisconnect, TimeoutError):
            return  # nobody is left to be told

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._events) as events, Patience(self._stall_s) as patience:
            first = await anext(events)
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            await patience.wait(send(_body(first)))
            try:
                async for following in events:
                    await patience.wait(send(_body(following)))
            except RequestError as error:
                await patience.wait(send(_body(event(request_error_content(error)))))
            await patience.wait(send(_body(b"", more=False)))


def _body(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}
