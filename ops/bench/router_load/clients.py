"""Clients that cost as little as possible, since they share the machine with what they measure."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from time import perf_counter
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import grpc
from trunkline.v1 import inference_pb2 as pb
from trunkline.v1.inference_pb2_grpc import InferenceStub

from ops.bench.router_load.pace import TOKEN

_TEXT = re.compile(rb'"text":\s*"(' + bytes([TOKEN]) + rb'*)"')
_MODEL = "bench"


class Seen(NamedTuple):
    """What came of one request."""

    first_s: float
    messages: int
    tokens: int


class Client(Protocol):
    """Asks in the way that is called for, with a prompt and the length of the answer.

    Over gRPC there is `tokenize` beside these.
    """

    async def stream(self, prompt: str, max_tokens: int) -> Seen:
        """Tokens as they come."""

    async def whole(self, prompt: str, max_tokens: int) -> Seen:
        """One answer for all tokens."""


class GrpcClient:
    """Over a connection of its own."""

    def __init__(self, address: str) -> None:
        options = (("grpc.use_local_subchannel_pool", 1),)
        self._channel = grpc.aio.insecure_channel(address, options)
        self._stub = InferenceStub(self._channel)

    async def stream(self, prompt: str, max_tokens: int) -> Seen:
        """Tokens as they come. Raises grpc.aio.AioRpcError."""
        request = pb.GenerateRequest(model=_MODEL, prompt=prompt)
        request.options.stop.max_tokens = max_tokens
        request.options.stop.ignore_eos = True
        start = perf_counter()
        first_s, messages, tokens = 0.0, 0, 0
        async for message in self._stub.Generate(request):
            if message.delta.token_ids:
                first_s = first_s or perf_counter() - start
                messages += 1
                tokens += len(message.delta.token_ids)
        return Seen(first_s, messages, tokens)

    async def whole(self, prompt: str, max_tokens: int) -> Seen:
        """The same: this protocol knows streams only."""
        return await self.stream(prompt, max_tokens)

    async def tokenize(self, prompt: str, max_tokens: int) -> Seen:
        """The tokens of a text. Raises grpc.aio.AioRpcError."""
        start = perf_counter()
        await self._stub.Tokenize(pb.TokenizeRequest(model=_MODEL, text=prompt))
        return Seen(perf_counter() - start, 0, 0)

    async def __aenter__(self) -> Self:
        await self._channel.channel_ready()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._channel.close()


class HttpClient:
    """Over a connection that is kept open."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def stream(self, prompt: str, max_tokens: int) -> Seen:
        """Tokens as they come. Raises ValueError for anything but a stream."""
        start = perf_counter()
        await self._ask(prompt, max_tokens, stream=True)
        first_s, messages, tokens = 0.0, 0, 0
        async for event in self._events():
            if text := _TEXT.search(event):
                first_s = first_s or perf_counter() - start
                messages += bool(text[1])
                tokens += len(text[1])
        return Seen(first_s, messages, tokens)

    async def _events(self) -> AsyncIterator[bytes]:
        """A body that comes in chunks, which need not be events."""
        rest = b""
        while size := int(await self._reader.readline(), 16):
            chunk = await self._reader.readexactly(size + 2)
            *events, rest = (rest + chunk[:-2]).split(b"\n\n")
            for event in events:
                yield event
        await self._reader.readline()

    async def whole(self, prompt: str, max_tokens: int) -> Seen:
        """All tokens at once."""
        start = perf_counter()
        body = await self._reader.readexactly(await self._ask(prompt, max_tokens, stream=False))
        text = json.loads(body)["choices"][0]["text"]
        return Seen(perf_counter() - start, 1, len(text))

    async def _ask(self, prompt: str, max_tokens: int, *, stream: bool) -> int:
        """Send a request and read the answer's head; returns the length of its body, if told."""
        content = {
            "model": _MODEL,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "stream": stream,
        }
        body = json.dumps(content).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        status = await self._reader.readline()
        size = 0
        while (line := await self._reader.readline()).strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                size = int(value)
        if status.split()[1:2] != [b"200"]:
            raise ValueError(f"status: got {status!r} {await self._reader.read(size)!r}")
        return size

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()
