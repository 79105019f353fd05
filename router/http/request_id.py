"""One name for a request in headers, answers and logs."""

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-request-id"
"""Carries the name, both ways."""

_FIT = re.compile(r"[A-Za-z0-9._:-]{1,100}")
"""The contract takes 128 characters; the rest is for numbers of prompts."""


def request_id(request: Request) -> str:
    """The name that RequestIds has given to `request`."""
    name = request.state.request_id
    assert isinstance(name, str)
    return name


class RequestIds:
    """Middleware that names requests by their header, if it is fit, and says so in the response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, as an ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        name = given if _FIT.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = name

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = name
            await send(message)

        await self._app(scope, receive, send_named)
