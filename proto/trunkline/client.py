"""The client."""

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc

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
from trunkline.stream import Stream
from trunkline.types import Model
from trunkline.v1 import inference_pb2 as pb
from trunkline.v1.inference_pb2_grpc import InferenceStub

_ResponseT = TypeVar("_ResponseT")


class Client:
    """Talks to a Trunkline router; threads may share it.

    `address` is `host:port`, or several of them: then requests take turns among the routers, and
    those that fail are left out for a while. Calls take `timeout_s`, seconds until they fail with
    DeadlineExceededError, and raise the errors of `trunkline.errors`. Requests that never started
    are sent again as `retry` says, and so are those that would be answered the same way again: with
    a seed, or with temperature 0. Of their answers, what has come before is left out.

    >>> client = Client(address)  # such as "localhost:50051"
    >>> for delta in client.generate("Once upon", max_tokens=3):
    ...     print(repr(delta.text))
    ' one'
    ' two'
    ' three'
    >>> client.close()
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
            grpc.secure_channel(one, tls.credentials(), CHANNEL_OPTIONS)
            if tls
            else grpc.insecure_channel(one, CHANNEL_OPTIONS)
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
    ) -> Stream:
        """Continues a prompt, given as text or token ids.

        The request is on its way when this returns. `model` may be empty when the cluster serves
        one.

        >>> with Client(address) as client:
        ...     stream = client.generate("Once upon", max_tokens=2, temperature=0)
        ...     print(stream.text(), stream.usage.completion_tokens)
         one two 2
        """
        request = generate_request(prompt, model, options)
        attempts = Attempts(self._retry, timeout_s, self._routers)
        return Stream.open(
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
    ) -> Stream:
        """Answers a conversation.

        >>> with Client(address) as client:
        ...     client.chat([{"role": "user", "content": "Hello!"}], max_tokens=1, n=2).texts()
        [' one', ' one']
        """
        request = chat_request(messages, model, options)
        attempts = Attempts(self._retry, timeout_s, self._routers)
        return Stream.open(
            lambda *, timeout: self._stubs[attempts.next_router()].Chat(
                request, timeout=timeout, metadata=self._headers
            ),
            attempts,
            request,
        )

    def tokenize(
        self,
        text: str | Conversation,
        *,
        model: str = "",
        special_tokens: bool = True,
        timeout_s: float | None = None,
    ) -> list[int]:
        """The token ids of a text, or of a conversation as the model's template renders it.

        >>> with Client(address) as client:
        ...     client.tokenize("abc", special_tokens=False)
        [97, 98, 99]
        """
        request = tokenize_request(text, model, special_tokens)
        answer = self._answer(
            lambda stub, timeout: stub.Tokenize(request, timeout=timeout, metadata=self._headers),
            timeout_s,
        )
        return list(answer.token_ids)

    def detokenize(
        self, token_ids: Sequence[int], *, model: str = "", timeout_s: float | None = None
    ) -> str:
        """The text of token ids.

        >>> with Client(address) as client:
        ...     client.detokenize([97, 98, 99])
        'abc'
        """
        request = detokenize_request(token_ids, model)
        answer = self._answer(
            lambda stub, timeout: stub.Detokenize(request, timeout=timeout, metadata=self._headers),
            timeout_s,
        )
        return answer.text

    def models(self, *, timeout_s: float | None = None) -> list[Model]:
        """The models that can be asked for.

        >>> with Client(address) as client:
        ...     client.models()
        [Model(name='fake', max_model_len=512, vocab_size=256, ready_replicas=1, models=())]
        """
        request = pb.ListModelsRequest()
        answer = self._answer(
            lambda stub, timeout: stub.ListModels(request, timeout=timeout, metadata=self._headers),
            timeout_s,
        )
        return list(map(Model.of, answer.models))

    def close(self) -> None:
        """Closes the connection; running requests are cancelled."""
        for channel in self._channels:
            channel.close()

    def _answer(
        self, call: Callable[[InferenceStub, float | None], _ResponseT], timeout_s: float | None
    ) -> _ResponseT:
        attempts = Attempts(self._retry, timeout_s, self._routers)
        while True:
            try:
                return call(self._stubs[attempts.next_router()], attempts.time_left_s)
            except grpc.RpcError as status:
                time.sleep(attempts.pause_s(error_of(status)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
