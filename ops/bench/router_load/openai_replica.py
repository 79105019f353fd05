"""What a worker of other routers says: as little of the OpenAI dialect as they need."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from ops.bench.router_load.pace import TOKEN, interval_s

_STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_MODEL = {"id": "bench", "object": "model", "created": 1, "owned_by": "bench"}
_CONTENTS: Mapping[str, Any] = {
    "/v1/models": {"object": "list", "data": [_MODEL]},
    "/get_model_info": {"model_path": "bench", "is_generation": True},
    "/model_info": {"model_path": "bench", "is_generation": True},
    "/get_server_info": {"model_path": "bench", "served_model_name": "bench"},
    "/server_info": {"model_path": "bench", "served_model_name": "bench"},
}


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection until it ends."""
    try:
        while head := await _head(reader):
            path, size = head
            body = await reader.readexactly(size)
            if not path.endswith("/completions"):
                await _send_whole(writer, _CONTENTS.get(path, {}))
                continue
            request = json.loads(body)
            if request.get("stream"):
                await _send_events(writer, ord(request["prompt"][0]), request["max_tokens"])
            else:
                await _send_whole(writer, _whole(request["max_tokens"]))
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # the client has gone
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader) -> tuple[str, int] | None:
    """Path and length of the body of the next request; None if none comes."""
    line = await reader.readline()
    words = line.split()
    if len(words) != 3:  # the end, or another protocol
        return None
    path, size = words[1].decode(), 0
    while (line := await reader.readline()).strip():
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            size = int(value)
    return path, size


async def _send_whole(writer: asyncio.StreamWriter, content: Mapping[str, Any]) -> None:
    body = json.dumps(content).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    writer.write(head.encode() + b"\r\n\r\n" + body)
    await writer.drain()


async def _send_events(writer: asyncio.StreamWriter, first_token: int, max_tokens: int) -> None:
    writer.write(_STREAM)
    for position in range(max_tokens):
        if position:
            await asyncio.sleep(interval_s(first_token))
        reason = "length" if position + 1 == max_tokens else None
        content = {**_answer_of(1, reason), "object": "text_completion"}
        writer.write(_chunk(b"data: " + json.dumps(content).encode() + b"\n\n"))
        await writer.drain()
    writer.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
    await writer.drain()


def _whole(max_tokens: int) -> Mapping[str, Any]:
    usage = {"prompt_tokens": 1, "completion_tokens": max_tokens, "total_tokens": max_tokens + 1}
    return {**_answer_of(max_tokens, "length"), "object": "text_completion", "usage": usage}


def _answer_of(num_tokens: int, finish_reason: str | None) -> dict[str, Any]:
    choice = {
        "index": 0,
        "text": chr(TOKEN) * num_tokens,
        "logprobs": None,
        "finish_reason": finish_reason,
    }
    return {"id": "cmpl-bench", "created": 1, "model": "bench", "choices": [choice]}


def _chunk(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)
