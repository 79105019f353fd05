"""What the HTTP server needs of the router."""

from collections.abc import AsyncGenerator
from typing import Protocol

from trunkline.v1 import inference_pb2 as pb

from router.call import Call


class Service(Protocol):
    """The part of `router.inference.InferenceService` that is served over HTTP."""

    @property
    def is_ready(self) -> bool:
        """Whether this router should be sent requests."""

    async def check_caller(self, call: Call) -> None:
        """Whether whoever calls may ask for anything at all. Raises RequestError."""

    def generate(
        self, request: pb.GenerateRequest, call: Call
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Continue a prompt."""

    def chat(self, request: pb.ChatRequest, call: Call) -> AsyncGenerator[pb.ChatResponse, None]:
        """Answer a conversation."""

    async def tokenize(self, request: pb.TokenizeRequest, call: Call) -> pb.TokenizeResponse:
        """Text to token ids."""

    async def detokenize(self, request: pb.DetokenizeRequest, call: Call) -> pb.DetokenizeResponse:
        """Token ids to text."""

    async def list_models(self, call: Call) -> pb.ListModelsResponse:
        """The models that can be asked for."""
