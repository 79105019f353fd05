"""The engine without a cluster: prompts in, texts out."""

import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from weakref import finalize

import numpy as np
from tokenizers import Tokenizer

from cluster.errors import Reason, RequestError
from cluster.settings import EngineSettings
from workers.engine.engine_start import start_engine
from workers.engine.mean_pool import Floats
from workers.engine.request import FinishReason, Request, SampleOutput, TokenLogprob
from workers.engine.sampling_params import SamplingParams
from workers.engine.subprocesses import SubprocessLauncher

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float32]]


class Sample(NamedTuple):
    """One continuation of a prompt."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprob]


class Completion(NamedTuple):
    """What became of one prompt."""

    prompt_token_ids: list[int]
    samples: list[Sample]
    prompt_logprobs: list[TokenLogprob]
    cached_prompt_tokens: int


class LLM:
    """Generates offline with the engine that serves online: no Ray, Redis or server.

    Ranks beyond the first (settings.parallel) are child processes. They end with `close`, when the
    LLM is forgotten, and when the thread that made it ends. A context manager, which closes it.

    llm = LLM("path/to/model")
    (completion,) = llm.generate(["def add(a, b):"], SamplingParams(max_tokens=16))
    print(completion.samples[0].text)
    """

    def __init__(self, model: Path | str, settings: EngineSettings | None = None) -> None:
        unbounded = {"max_waiting_requests": sys.maxsize}
        settings = (settings or EngineSettings()).model_copy(update=unbounded)
        self.engine = start_engine(Path(model), settings, SubprocessLauncher)
        self.close = finalize(self, self.engine.close)
        """Ends the other ranks; nothing can be generated afterwards. Again is fine."""
        self._tokenizer = Tokenizer.from_str(self.engine.card("").tokenizer_json)
        self._numbers = count()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
    ) -> list[Completion]:
        """Continue each prompt, a text or token ids; `params` for all or one for each.

        Raises RequestError (INVALID_ARGUMENT) if any prompt cannot be served; none is, then.
        """
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        requests = [
            Request(f"offline-{next(self._numbers)}", self._tokens(prompt), wishes)
            for prompt, wishes in zip(prompts, each, strict=True)
        ]
        outputs = self._run(requests)
        return [self._completion(request, outputs[request.request_id]) for request in requests]

    def embed(self, prompts: Sequence[str | Sequence[int]]) -> Matrix:
        """The mean of each prompt's final hidden states, of length 1: float32 [P, hidden_size].

        Raises RequestError: INVALID_ARGUMENT if any prompt cannot be served, and none is, then;
        INTERNAL if the model's values are not finite.
        """
        requests = [
            Request(
                f"offline-{next(self._numbers)}", self._tokens(prompt), SamplingParams(), embed=True
            )
            for prompt in prompts
        ]
        outputs = self._run(requests)
        return np.stack([_embedding(outputs[request.request_id]) for request in requests])

    def _run(self, requests: list[Request]) -> dict[str, list[SampleOutput]]:
        """All that comes of requests, by their ids."""
        outputs: dict[str, list[SampleOutput]] = {request.request_id: [] for request in requests}
        try:
            for request in requests:
                self.engine.add(request)
            while self.engine.has_work:
                for output in self.engine.step():
                    outputs[output.request_id].append(output)
        finally:
            for request in requests:
                self.engine.cancel(request.request_id)
        return outputs

    def _tokens(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            ids: list[int] = self._tokenizer.encode(prompt).ids
            return ids
        return list(prompt)

    def _completion(self, request: Request, outputs: list[SampleOutput]) -> Completion:
        return Completion(
            request.prompt_token_ids,
            [
                self._sample([output for output in outputs if output.index == index])
                for index in range(request.params.n)
            ],
            [logprob for output in outputs for logprob in output.prompt_logprobs],
            sum(output.started.cached_prompt_tokens for output in outputs if output.started),
        )

    def _sample(self, outputs: list[SampleOutput]) -> Sample:
        token_ids = [token_id for output in outputs for token_id in output.token_ids]
        reason = outputs[-1].finish_reason
        assert reason is not None
        logprobs = [logprob for output in outputs for logprob in output.logprobs]
        return Sample(self._tokenizer.decode(token_ids), token_ids, reason, logprobs)


def _embedding(outputs: list[SampleOutput]) -> Floats:
    [output] = outputs
    if output.embedding is None:
        raise RequestError(Reason.INTERNAL, output.error)
    return output.embedding
