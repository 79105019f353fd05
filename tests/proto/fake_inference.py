"""An Inference service that needs no model: it counts in words and does as the prompt says."""

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Never, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from trunkline.v1 import inference_pb2 as pb
from trunkline.v1.inference_pb2_grpc import InferenceServicer, add_InferenceServicer_to_server

WORDS = (" one", " two", " three", " four", " five")

_ResponseT = TypeVar("_ResponseT", pb.GenerateResponse, pb.ChatResponse)


@dataclass(frozen=True, slots=True)
class Failure:
    """A status, and what stands in the trailing metadata beside it."""

    code: grpc.StatusCode
    detail: pb.ErrorDetail = field(default_factory=pb.ErrorDetail)
    after_words: int = 0
    """Words that each sample gets to send before the call fails."""

    def raise_in(self, context: grpc.ServicerContext) -> Never:
        trailer = ("trunkline-error-bin", self.detail.SerializeToString())
        context.set_trailing_metadata((trailer,))
        context.abort(self.code, f"status {self.code.name}")
        raise AssertionError("abort raises")


class FakeInference(InferenceServicer):
    """Answers with WORDS over and over, `max_tokens` of them for each sample.

    `failures` are met by the next calls, one each. While `flow` is clear, answers stop after their
    first word. `ended` is set when an answer ends, by whatever cause.
    """

    def __init__(self) -> None:
        self.generations: list[pb.GenerateRequest] = []
        self.conversations: list[pb.ChatRequest] = []
        self.headers: list[dict[str, str | bytes]] = []
        self.time_left_s: list[float | None] = []
        self.failures: list[Failure] = []
        self.flow = threading.Event()
        self.flow.set()
        self.ended = threading.Event()

    def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateResponse]:
        self.generations.append(request)
        yield from self._answer(pb.GenerateResponse, request.options, context)

    def Chat(  # noqa: N802
        self, request: pb.ChatRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ChatResponse]:
        self.conversations.append(request)
        yield from self._answer(pb.ChatResponse, request.options, context)

    def Tokenize(  # noqa: N802
        self, request: pb.TokenizeRequest, context: grpc.ServicerContext
    ) -> pb.TokenizeResponse:
        self._meet(context)
        turns = request.messages.messages
        text = request.text or "".join(f"<{turn.role}>{turn.content}" for turn in turns)
        bos = [] if request.no_special_tokens else [0]
        return pb.TokenizeResponse(token_ids=[*bos, *text.encode()])

    def Detokenize(  # noqa: N802
        self, request: pb.DetokenizeRequest, context: grpc.ServicerContext
    ) -> pb.DetokenizeResponse:
        return pb.DetokenizeResponse(text=bytes(request.token_ids).decode())

    def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: grpc.ServicerContext
    ) -> pb.ListModelsResponse:
        model = pb.Model(name="fake", max_model_len=512, vocab_size=256, ready_replicas=1)
        return pb.ListModelsResponse(models=[model])

    def _answer(
        self,
        kind: type[_ResponseT],
        options: pb.RequestOptions,
        context: grpc.ServicerContext,
    ) -> Iterator[_ResponseT]:
        context.add_callback(self.flow.set)
        context.add_callback(self.ended.set)
        failure = self._meet(context)
        samples, count = options.n or 1, options.stop.max_tokens or len(WORDS)
        request_id = options.request_id or "drawn-by-the-server"
        for position in range(count):
            for index in range(samples):
                delta = _delta(index, position, last=position + 1 == count, options=options)
                yield kind(request_id=request_id, model="fake", delta=delta)
            if failure and failure.after_words == position + 1:
                failure.raise_in(context)
            self.flow.wait()
        usage = pb.Usage(prompt_tokens=2, completion_tokens=count * samples)
        # Requests with a seed count as answered before.
        has_seed = options.sampling.HasField("seed")
        source = pb.CACHE_SOURCE_EXACT if has_seed else pb.CACHE_SOURCE_UNSPECIFIED
        yield kind(
            request_id=request_id,
            model="fake",
            usage=usage,
            timings=_TIMINGS,
            cache_source=source,
        )

    def _meet(self, context: grpc.ServicerContext) -> Failure | None:
        """Notes the call and fails it if it is to fail at once."""
        self.headers.append(dict(context.invocation_metadata()))
        self.time_left_s.append(context.time_remaining())
        failure = self.failures.pop(0) if self.failures else None
        if failure and failure.after_words == 0:
            failure.raise_in(context)
        return failure


_TIMINGS = pb.Timings(
    queue=Duration(nanos=250_000_000),
    time_to_first_token=Duration(nanos=500_000_000),
    total=Duration(seconds=2),
)


def _delta(index: int, position: int, *, last: bool, options: pb.RequestOptions) -> pb.Delta:
    word = position % len(WORDS)
    delta = pb.Delta(index=index, text=WORDS[word], token_ids=[word])
    if options.logprobs.HasField("top_logprobs"):
        token = pb.TokenLogprob.Candidate(token_id=word, logprob=-0.5, text=WORDS[word].encode())
        delta.logprobs.append(pb.TokenLogprob(token=token, top=[token]))
    if last:
        delta.finish_reason = pb.FINISH_REASON_LENGTH
    return delta


@contextmanager
def serve(
    service: FakeInference, credentials: grpc.ServerCredentials | None = None, port: int = 0
) -> Iterator[str]:
    """Serves on loopback and gives the address."""
    pool = futures.ThreadPoolExecutor(max_workers=8)
    server = grpc.server(pool)
    add_InferenceServicer_to_server(service, server)
    address = f"localhost:{port}"
    bound = (
        server.add_secure_port(address, credentials)
        if credentials
        else server.add_insecure_port(address)
    )
    server.start()
    try:
        yield f"localhost:{bound}"
    finally:
        service.flow.set()
        server.stop(grace=None).wait()
        pool.shutdown()
