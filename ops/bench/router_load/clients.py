"""Clients that cost as little as possible, since they share the machine with what they measure."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import NamedTuple, Self

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


def ignore() -> None:
    """Do nothing with a first token."""


class GrpcClient:
    """Over a connection of its own."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = InferenceStub(channel)

    @classmethod
    @asynccontextmanager
    async def connect(cls, address: str) -> AsyncIterator[Self]:
        """One that may be used within the context."""
        options = (("grpc.use_local_subchannel_pool", 1),)
        async with grpc.aio.insecure_channel(address, options) as channel:
            await channel.channel_ready()
            yield cls(channel)

    async def stream(
        self, prompt: str, max_tokens: int, on_first: Callable[[], None] = ignore
    ) -> Seen:
        """Tokens as they come. Raises grpc.aio.AioRpcError."""
        request = pb.GenerateRequest(model=_MODEL, prompt=prompt)
        request.options.stop.max_tokens = max_tokens
        request.options.stop.ignore_eos = True
        start = perf_counter()
        first_s, messages, tokens = 0.0, 0, 0
        async for message in self._stub.Generate(request):
            if message.delta.token_ids:
                if not messages:
                    first_s = perf_counter() - start
                    on_first()
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


class HttpClient:
    """Over a connection that is kept open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    @asynccontextmanager
    async def connect(cls, address: str) -> AsyncIterator[Self]:
        """One that may be used within the context."""
        reader, writer = await asyncio.open_connection(*address.split(":"))
        yield cls(reader, writer)
        writer.close()

    async def stream(
        self, prompt: str, max_tokens: int, on_first: Callable[[], None] = ignore
    ) -> Seen:
        """Tokens as they come. Raises ValueError for anything but a stream."""
        start = perf_counter()
        await self._ask(prompt, max_tokens, stream=True)
        first_s, messages, tokens = 0.0, 0, 0
        async for event in self._events():
            if (text := _TEXT.search(event)) and text[1]:
                if not messages:
                    first_s = perf_counter() - start
                    on_first()
                messages += 1
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
