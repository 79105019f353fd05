"""The client for asyncio."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, Unpack

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
from trunkline.routers import Rotation, addresses_of
from trunkline.types import Model
from trunkline.v1 import inference_pb2 as pb
from trunkline.v1.inference_pb2_grpc import InferenceStub

if TYPE_CHECKING:
    from trunkline.v1.inference_pb2_grpc import InferenceAsyncStub

_ResponseT = TypeVar("_ResponseT")


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
        address: str | Sequence[str],
        *,
        api_key: str | None = None,
        tls: TLS | None = None,
        retry: RetryPolicy = DEFAULT_RETRY,
    ) -> None:
        self._headers = headers(api_key)
        self._retry = retry
        addresses = addresses_of(address)
        self._channels = [
            grpc.aio.secure_channel(one, tls.credentials(), CHANNEL_OPTIONS)
            if tls
            else grpc.aio.insecure_channel(one, CHANNEL_OPTIONS)
            for one in addresses
        ]
        self._stubs = [InferenceStub(channel) for channel in self._channels]
        self._routers = Rotation(len(addresses))

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
        attempts = Attempts(self._retry, timeout_s, self._routers)
        return AsyncStream.open(
            lambda *, timeout: self._stubs[attempts.next_router()].Generate(
                request, timeout=timeout, metadata=self._headers
            ),
            attempts,
            request,
        )

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
        attempts = Attempts(self._retry, timeout_s, self._routers)
        return AsyncStream.open(
            lambda *, timeout: self._stubs[attempts.next_router()].Chat(
                request, timeout=timeout, metadata=self._headers
            ),
            attempts,
            request,
        )

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
        answer = await self._answer(
            lambda stub, timeout: stub.Tokenize(request, timeout=timeout, metadata=self._headers),
            timeout_s,
        )
        return list(answer.token_ids)

    async def detokenize(
        self, token_ids: Sequence[int], *, model: str = "", timeout_s: float | None = None
    ) -> str:
        """The text of token ids."""
        request = detokenize_request(token_ids, model)
        answer = await self._answer(
            lambda stub, timeout: stub.Detokenize(request, timeout=timeout, metadata=self._headers),
            timeout_s,
        )
        return answer.text

    async def models(self, *, timeout_s: float | None = None) -> list[Model]:
        """The models that can be asked for."""
        request = pb.ListModelsRequest()
        answer = await self._answer(
            lambda stub, timeout: stub.ListModels(request, timeout=timeout, metadata=self._headers),
            timeout_s,
        )
        return list(map(Model.of, answer.models))

    async def close(self) -> None:
        """Closes the connection; running requests are cancelled."""
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def _answer(
        self,
        call: Callable[["InferenceAsyncStub", float | None], Awaitable[_ResponseT]],
        timeout_s: float | None,
    ) -> _ResponseT:
        attempts = Attempts(self._retry, timeout_s, self._routers)
        while True:
            try:
                return await call(self._stubs[attempts.next_router()], attempts.time_left_s)
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
