"""A completions endpoint that needs no model and misbehaves on demand."""

import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

BUSY, CUT_OFF, ERROR_EVENT, SHORT, SILENT, GIBBERISH = range(6)
"""First token ids of prompts, and what they make the server do."""
WELL = 100


class FakeOpenAI:
    """Answers in vLLM's way: an event with text for each token, then usage, then [DONE]."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.app = Starlette(
            routes=[
                Route("/v1/models", self.models),
                Route("/v1/completions", self.complete, methods=["POST"]),
            ]
        )

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "fake", "object": "model"}]})

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization"))
        how = body["prompt"][0]
        if how == BUSY:
            return JSONResponse({"error": {"message": "come back later"}}, status_code=429)
        if how == GIBBERISH:
            return PlainTextResponse("data: so what?\n\n")
        return StreamingResponse(_events(how, body["max_tokens"]), media_type="text/event-stream")


async def _events(how: int, num_tokens: int) -> AsyncIterator[str]:
    for i in range(num_tokens):
        last = i + 1 == num_tokens
        text = "" if how == SILENT else f" {i}"
        yield _event(choices=[{"text": text, "finish_reason": "length" if last else None}])
        if how == CUT_OFF:
            return
        if how == ERROR_EVENT:
            yield _event(error={"message": "the engine is gone"})
            return
    yield _event(choices=[], usage={"completion_tokens": num_tokens - (how == SHORT)})
    yield "data: [DONE]\n\n"


def _event(**content: object) -> str:
    return f"data: {json.dumps(content)}\n\n"


@contextmanager
def serve(service: FakeOpenAI) -> Iterator[str]:
    """Serves on loopback and gives the base URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(service.app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()
