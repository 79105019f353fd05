"""The client for asyncio."""

import asyncio
from collections.abc import Awaitable, Sequence
from functools import partial
from types import TracebackType
from typing import Protocol, Self, TypeVar, Unpack

import grpc.aio

from trunkline.aio_stream import AsyncStream
from trunkline.channel import CHANNEL_OPTIONS, TLS, headers
from trunkline.errors import error_of
from trunkline.options import Options
from trunkline.requests import (
    Conversation,
    chat_request,
    detokenize_request,
    generate_request,
    tokenize_request,
)
from trunkline.retry import DEFAULT_RETRY, Attempts, RetryPolicy
from trunkline.types import Model
from trunkline.v1 import inference_pb2 as pb
from trunkline.v1.inference_pb2_grpc import InferenceStub

_ResponseT = TypeVar("_ResponseT")
_ResponseT_co = TypeVar("_ResponseT_co", covariant=True)


class _Attempt(Protocol[_ResponseT_co]):
    def __call__(self, *, timeout: float | None) -> Awaitable[_ResponseT_co]: ...


class AsyncClient:
    """The twin of Client for asyncio; make it where an event loop runs, and use it there.

    >>> async def main():
    ...     async with AsyncClient(address) as client:
    ...         async for delta in client.generate("Once upon", max_tokens=2):
    ...             print(repr(delta.text))
    >>> asyncio.run(main())
    ' one'
    ' two'
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        tls: TLS | None = None,
        retry: RetryPolicy = DEFAULT_RETRY,
    ) -> None:
        self._headers = headers(api_key)
        self._retry = retry
        self._channel = (
            grpc.aio.secure_channel(address, tls.credentials(), CHANNEL_OPTIONS)
            if tls
            else grpc.aio.insecure_channel(address, CHANNEL_OPTIONS)
        )
        self._stub = InferenceStub(self._channel)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        model: str = "",
        timeout_s: float | None = None,
        **options: Unpack[Options],
    ) -> AsyncStream:
        """Continues a prompt; see Client.generate.

        >>> async def main():
        ...     async with AsyncClient(address) as client:
        ...         return await client.generate("Once upon", max_tokens=2).text()
        >>> asyncio.run(main())
        ' one two'
        """
        request = generate_request(prompt, model, options)
        start = partial(self._stub.Generate, request, metadata=self._headers)
        attempts = Attempts(self._retry, timeout_s)
        return AsyncStream.open(start, attempts, request.options.request_id)

    def chat(
        self,
        messages: Conversation,
        *,
        model: str = "",
        timeout_s: float | None = None,
        **options: Unpack[Options],
    ) -> AsyncStream:
        """Answers a conversation; see Client.chat.

        >>> async def main():
        ...     async with AsyncClient(address) as client:
        ...         return await client.chat([Message("user", "Hello!")], max_tokens=1).text()
        >>> asyncio.run(main())
        ' one'
        """
        request = chat_request(messages, model, options)
        start = partial(self._stub.Chat, request, metadata=self._headers)
        attempts = Attempts(self._retry, timeout_s)
        return AsyncStream.open(start, attempts, request.options.request_id)

    async def tokenize(
        self,
        text: str | Conversation,
        *,
        model: str = "",
        special_tokens: bool = True,
        timeout_s: float | None = None,
    ) -> list[int]:
        """The token ids of a text, or of a conversation as the model's template renders it."""
        request = tokenize_request(text, model, special_tokens)
        start = partial(self._stub.Tokenize, request, metadata=self._headers)
        return list((await self._answer(start, timeout_s)).token_ids)

    async def detokenize(
        self, token_ids: Sequence[int], *, model: str = "", timeout_s: float | None = None
    ) -> str:
        """The text of token ids."""
        request = detokenize_request(token_ids, model)
        start = partial(self._stub.Detokenize, request, metadata=self._headers)
        return (await self._answer(start, timeout_s)).text

    async def models(self, *, timeout_s: float | None = None) -> list[Model]:
        """The models that can be asked for."""
        request = pb.ListModelsRequest()
        start = partial(self._stub.ListModels, request, metadata=self._headers)
        return list(map(Model.of, (await self._answer(start, timeout_s)).models))

    async def close(self) -> None:
        """Closes the connection; running requests are cancelled."""
        await self._channel.close()

    async def _answer(self, start: _Attempt[_ResponseT], timeout_s: float | None) -> _ResponseT:
        attempts = Attempts(self._retry, timeout_s)
        while True:
            try:
                return await start(timeout=attempts.time_left_s)
            except grpc.aio.AioRpcError as status:
                await asyncio.sleep(attempts.pause_s(error_of(status)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
