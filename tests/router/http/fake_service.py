"""A service without a cluster: it answers in capitals, and fails when asked to."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from trunkline.v1 import inference_pb2 as pb

from cluster.errors import Reason, RequestError, invalid
from router.call import Call
from router.text.stop_strings import StopStrings
from router.validation.options import check_options

VOCAB_SIZE = 0x110000
"""A token is a character; its id is the code point."""

Message = TypeVar("Message", pb.GenerateResponse, pb.ChatResponse)


@dataclass
class FakeService:
    """Implements router.http.service.Service; the model's name says what is to happen.

    `tiny` answers; `refuse-REASON` fails at once, `fail-REASON` after the first character;
    `bug` raises what no service should; `broken` has a sample that fails alone; `endless` says
    one character and no more, `silent` none, `flood` never ends.
    """

    is_ready: bool = True
    requests: list[pb.GenerateRequest | pb.ChatRequest] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    waiting: threading.Event = field(default_factory=threading.Event)
    """Set when an endless or silent request has begun to wait."""
    closed: threading.Event = field(default_factory=threading.Event)
    """Set when one has been closed."""

    async def check_caller(self, call: Call) -> None:
        pass

    async def generate(
        self, request: pb.GenerateRequest, call: Call
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        prompt = request.prompt or "".join(map(chr, request.token_ids.ids))
        self._note(request, call)
        async for message in self._answer(pb.GenerateResponse, request, prompt):
            yield message

    async def chat(
        self, request: pb.ChatRequest, call: Call
    ) -> AsyncGenerator[pb.ChatResponse, None]:
        prompt = request.messages[-1].content
        self._note(request, call)
        async for message in self._answer(pb.ChatResponse, request, prompt):
            yield message

    async def tokenize(self, request: pb.TokenizeRequest, call: Call) -> pb.TokenizeResponse:
        return pb.TokenizeResponse(model="tiny", token_ids=map(ord, request.text))

    async def detokenize(self, request: pb.DetokenizeRequest, call: Call) -> pb.DetokenizeResponse:
        for position, token_id in enumerate(request.token_ids):
            if token_id >= VOCAB_SIZE:
                raise invalid(f"token_ids[{position}]", token_id, f"below {VOCAB_SIZE}")
        return pb.DetokenizeResponse(model="tiny", text="".join(map(chr, request.token_ids)))

    async def list_models(self, call: Call) -> pb.ListModelsResponse:
        models = [pb.Model(name=name, max_model_len=512) for name in ("tiny", "org/other")]
        return pb.ListModelsResponse(models=models)

    def _note(self, request: pb.GenerateRequest | pb.ChatRequest, call: Call) -> None:
        self.requests.append(request)
        self.calls.append(call)

    async def _answer(
        self,
        kind: type[Message],
        request: pb.GenerateRequest | pb.ChatRequest,
        prompt: str,
    ) -> AsyncGenerator[Message, None]:
        options, (action, _, reason) = request.options, request.model.partition("-")
        check_options(options, VOCAB_SIZE)
        if not prompt:
            raise invalid("prompt", prompt, "at least one token")
        if action == "refuse":
            raise _error(reason)
        if action == "bug":
            raise RuntimeError("scripted bug")
        if action == "silent":
            await self._wait()
        asked = options.logprobs
        prompt_logprobs = (
            [_logprob(character, asked.prompt_top_logprobs) for character in prompt[1:]]
            if asked.HasField("prompt_top_logprobs")
            else []
        )
        if action == "flood":
            async for delta in self._flood():
                yield kind(request_id=options.request_id, model=request.model, delta=delta)
        num_tokens = 0
        for delta in _deltas(prompt.upper(), options):
            num_tokens += len(delta.token_ids)
            if action == "broken" and delta.index == options.n - 1:
                delta.finish_reason = pb.FINISH_REASON_ERROR
            yield kind(
                request_id=options.request_id,
                model=request.model or "tiny",
                delta=delta,
                prompt_logprobs=prompt_logprobs,
            )
            prompt_logprobs = []
            await asyncio.sleep(0)
            if action == "fail":
                raise _error(reason)
            if action == "endless":
                await self._wait()
        usage = pb.Usage(
            prompt_tokens=len(prompt), completion_tokens=num_tokens, cached_prompt_tokens=1
        )
        yield kind(request_id=options.request_id, model=request.model or "tiny", usage=usage)

    async def _flood(self) -> AsyncGenerator[pb.Delta, None]:
        try:
            while True:
                yield pb.Delta(text="x" * 2**16)
                await asyncio.sleep(0)
        finally:
            self.closed.set()

    async def _wait(self) -> None:
        self.waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # cleaning up takes a turn of the loop
            self.closed.set()


def _error(reason: str) -> RequestError:
    retry_after_s = 1.5 if reason == Reason.QUEUE_FULL else None
    return RequestError(Reason(reason), f"scripted {reason}", retry_after_s=retry_after_s)


def _deltas(answer: str, options: pb.RequestOptions) -> Iterator[pb.Delta]:
    """One delta for each character of each sample, the samples in turn."""
    most = options.stop.max_tokens if options.stop.HasField("max_tokens") else len(answer)
    samples = [_sample(index, answer[:most], options) for index in range(options.n or 1)]
    for deltas in zip(*samples, strict=True):
        for delta in deltas:
            if len(answer) > most and delta.finish_reason and not delta.stop_string:
                delta.finish_reason = pb.FINISH_REASON_LENGTH
            yield delta


def _sample(index: int, answer: str, options: pb.RequestOptions) -> list[pb.Delta]:
    stops, deltas = StopStrings(options.stop.stop_strings), []
    for character in answer:
        text, stop_string = stops.push(character)
        delta = pb.Delta(index=index, text=text, token_ids=[ord(character)])
        if options.logprobs.HasField("top_logprobs"):
            delta.logprobs.append(_logprob(character, options.logprobs.top_logprobs))
        deltas.append(delta)
        if stop_string is not None:
            delta.stop_string = stop_string
            break
    else:
        deltas[-1].text += stops.flush()
    deltas[-1].finish_reason = pb.FINISH_REASON_STOP
    return deltas


def _logprob(character: str, num_top: int) -> pb.TokenLogprob:
    ranked = [(character, -0.5), *((chr(ord("a") + rank), float("-inf")) for rank in range(20))]
    candidates = [
        pb.TokenLogprob.Candidate(token_id=ord(token), logprob=logprob, text=token.encode())
        for token, logprob in ranked
    ]
    return pb.TokenLogprob(token=candidates[0], top=candidates[:num_top])
