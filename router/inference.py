"""What the router does for clients, whatever protocol they speak."""

from collections.abc import AsyncGenerator

from router.call import Call
from trunkline.v1 import inference_pb2 as pb


class InferenceService:
    """The methods of `trunkline.v1.Inference`; gRPC and HTTP servers are thin adapters around it.

    Every method raises RequestError and nothing else. Closing a generator (`aclose`, best by
    `contextlib.aclosing`) before its end cancels the request in the engine. The first message
    of a stream comes when there are first tokens (errors of admission are raised before it);
    a message without `delta` is the last one and carries usage and timings.
    """

    @property
    def is_ready(self) -> bool:
        """Whether this router should be sent requests: it knows a model and is not draining."""
        raise NotImplementedError

    def generate(
        self, request: pb.GenerateRequest, call: Call
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Continue a prompt."""
        raise NotImplementedError

    def chat(self, request: pb.ChatRequest, call: Call) -> AsyncGenerator[pb.ChatResponse, None]:
        """Answer a conversation."""
        raise NotImplementedError

    async def tokenize(self, request: pb.TokenizeRequest) -> pb.TokenizeResponse:
        """Text or messages to token ids."""
        raise NotImplementedError

    async def detokenize(self, request: pb.DetokenizeRequest) -> pb.DetokenizeResponse:
        """Token ids to text."""
        raise NotImplementedError

    def list_models(self) -> pb.ListModelsResponse:
        """The models known to this router, by name."""
        raise NotImplementedError
