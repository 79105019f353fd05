"""`trunkline.v1.Inference` over gRPC: a thin adapter around InferenceService."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc
from trunkline.v1 import inference_pb2 as pb
from trunkline.v1.inference_pb2_grpc import InferenceServicer

from cluster.errors import Reason, RequestError
from router.call import Call
from router.grpc_errors import abort
from router.inference import InferenceService
from router.patience import Patience

Context = grpc.aio.ServicerContext[Any, Any]

# Streams are coroutines that write, not generators: a generator would stay unclosed, and its
# request running, when a call is cancelled while it writes to a slow client.
# mypy: disable-error-code=override


class GrpcInference(InferenceServicer):
    """Passes calls on to the service; a call that gRPC cancels is cancelled in the engine."""

    def __init__(self, service: InferenceService, stall_s: float) -> None:
        """A client that does not take a message within `stall_s` is given up."""
        self._service = service
        self._stall_s = stall_s

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # noqa: N802
        """Continue a prompt."""
        await self._stream(self._service.generate(request, call_of(context)), context)

    async def Chat(self, request: pb.ChatRequest, context: Context) -> None:  # noqa: N802
        """Answer a conversation."""
        await self._stream(self._service.chat(request, call_of(context)), context)

    async def Tokenize(  # noqa: N802
        self, request: pb.TokenizeRequest, context: Context
    ) -> pb.TokenizeResponse:
        """Text to token ids."""
        try:
            return await self._service.tokenize(request, call_of(context))
        except RequestError as error:
            await abort(context, error)

    async def Detokenize(  # noqa: N802
        self, request: pb.DetokenizeRequest, context: Context
    ) -> pb.DetokenizeResponse:
        """Token ids to text."""
        try:
            return await self._service.detokenize(request, call_of(context))
        except RequestError as error:
            await abort(context, error)

    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        """The models that can be asked for."""
        try:
            return await self._service.list_models(call_of(context))
        except RequestError as error:
            await abort(context, error)

    async def _stream(self, messages: AsyncGenerator[Any, None], context: Context) -> None:
        try:
            async with aclosing(messages), Patience(self._stall_s) as patience:
                async for message in messages:
                    await patience.wait(context.write(message))
        except TimeoutError:
            why = f"the client has taken nothing for {self._stall_s:g}s"
            await abort(context, RequestError(Reason.CANCELLED, why))
        except RequestError as error:
            await abort(context, error)


def call_of(context: Context) -> Call:
    """What is known about a call beside its message."""
    # None without a deadline, whatever the stubs say.
    remaining_s: float | None = context.time_remaining()
    deadline = None if remaining_s is None else time.monotonic() + remaining_s
    given = (value for key, value in context.invocation_metadata() or () if key == "authorization")
    authorization = str(next(given, ""))
    return Call(deadline=deadline, peer=context.peer(), authorization=authorization)
