"""What a model that computes nothing answers: the same messages each time."""

from collections.abc import AsyncIterator

from trunkline.v1 import inference_pb2 as pb

from ops.bench.router_load.pace import TOKEN, Steps

_LETTER = chr(TOKEN)
_NEXT = pb.GenerateResponse(delta=pb.Delta(token_ids=(TOKEN,), text=_LETTER))
_LAST = pb.GenerateResponse(
    delta=pb.Delta(token_ids=(TOKEN,), text=_LETTER, finish_reason=pb.FINISH_REASON_LENGTH)
)


class Answers:
    """Over gRPC, where these are as Ray Serve would have them, and in Python."""

    def __init__(self) -> None:
        self._steps = Steps()

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest
    ) -> AsyncIterator[pb.GenerateResponse]:
        """A message for each token, and one more."""
        max_tokens = request.options.stop.max_tokens
        async for position in self._steps.positions(request.prompt, max_tokens):
            yield _NEXT if position + 1 < max_tokens else _LAST
        yield pb.GenerateResponse(usage=pb.Usage(completion_tokens=max_tokens))

    async def Tokenize(self, request: pb.TokenizeRequest) -> pb.TokenizeResponse:  # noqa: N802
        """A token for each letter."""
        return pb.TokenizeResponse(token_ids=request.text.encode())

    async def stream(self, prompt: str, max_tokens: int) -> AsyncIterator[str]:
        """Plain text, token by token."""
        async for _ in self._steps.positions(prompt, max_tokens):
            yield _LETTER

    async def whole(self, prompt: str, max_tokens: int) -> str:
        """Plain text."""
        return _LETTER * max_tokens
