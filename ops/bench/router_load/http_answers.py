"""The answers over HTTP: as little of the OpenAI dialect as loads and other routers need."""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ops.bench.router_load.pace import TOKEN, Steps

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

_MODEL = {"id": "bench", "object": "model", "created": 1, "owned_by": "bench"}
_CONTENTS: Mapping[str, Any] = {
    "/v1/models": {"object": "list", "data": [_MODEL]},
    "/get_model_info": {"model_path": "bench", "is_generation": True},
    "/model_info": {"model_path": "bench", "is_generation": True},
    "/get_server_info": {"model_path": "bench", "served_model_name": "bench"},
    "/server_info": {"model_path": "bench", "served_model_name": "bench"},
}
"""What other routers ask their workers."""


class HttpAnswers:
    """An ASGI application."""

    def __init__(self) -> None:
        self._steps = Steps()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return  # the server's start, which changes nothing
        body, more = b"", True
        while more:
            part = await receive()
            body, more = body + part.get("body", b""), part.get("more_body", False)
        if not scope["path"].endswith("/completions"):
            await _send_whole(send, _CONTENTS.get(scope["path"], {}))
            return
        request = json.loads(body)
        max_tokens = request["max_tokens"]
        if request.get("stream"):
            await self._send_events(send, request["prompt"], max_tokens)
        else:
            tokens = {"prompt_tokens": 1, "completion_tokens": max_tokens}
            usage = {**tokens, "total_tokens": max_tokens + 1}
            await _send_whole(send, {**_answer_of(max_tokens, "length"), "usage": usage})

    async def _send_events(self, send: Send, prompt: str, max_tokens: int) -> None:
        await _start(send, (b"content-type", b"text/event-stream; charset=utf-8"))
        async for position in self._steps.positions(prompt, max_tokens):
            event = _NEXT_EVENT if position + 1 < max_tokens else _LAST_EVENT
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def _start(send: Send, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _send_whole(send: Send, content: Mapping[str, Any]) -> None:
    body = json.dumps(content).encode()
    length = (b"content-length", str(len(body)).encode())
    await _start(send, (b"content-type", b"application/json"), length)
    await send({"type": "http.response.body", "body": body})


def _answer_of(num_tokens: int, finish_reason: str | None) -> dict[str, Any]:
    choice = {
        "index": 0,
        "text": chr(TOKEN) * num_tokens,
        "logprobs": None,
        "finish_reason": finish_reason,
    }
    kind = {"id": "cmpl-bench", "object": "text_completion", "created": 1, "model": "bench"}
    return {**kind, "choices": [choice]}


def _event(finish_reason: str | None) -> bytes:
    return b"data: " + json.dumps(_answer_of(1, finish_reason)).encode() + b"\n\n"


_NEXT_EVENT, _LAST_EVENT = _event(None), _event("length")
