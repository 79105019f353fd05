"""What has arrived of an answer."""

from dataclasses import replace
from typing import TypeAlias, TypeVar

from trunkline.errors import InternalError, TrunklineError, UnavailableError
from trunkline.types import (
    CacheSource,
    Delta,
    FinishReason,
    Timings,
    TokenLogprob,
    Usage,
    cache_source,
)
from trunkline.v1 import inference_pb2 as pb

Request: TypeAlias = pb.GenerateRequest | pb.ChatRequest
Response: TypeAlias = pb.GenerateResponse | pb.ChatResponse

_T = TypeVar("_T")


class _Sample:
    """What has arrived of one sample; when it arrives again, from its start, that is left out.

    Tokens are told apart by their position. So is text, which need not come in the same pieces.
    """

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.has_failed = False
        self._token_ids: list[int] = []
        self._num_chars = 0
        self._is_ended = False
        self._next_token = 0
        self._next_char = 0

    def rewind(self) -> None:
        """It arrives again from its start."""
        self._next_token = self._next_char = 0

    def take(self, delta: Delta) -> Delta | None:
        """What is new in a delta, if anything is.

        Raises UnavailableError if other tokens arrive than before.
        """
        num_tokens = len(self._token_ids) - self._next_token
        num_chars = self._num_chars - self._next_char
        if num_tokens or num_chars or self._is_ended:
            again = delta.token_ids[:num_tokens]
            if [*again] != self._token_ids[self._next_token :][: len(again)]:
                raise UnavailableError(
                    "the answer was broken off, and on a second try it is another one",
                    reason="ANSWER_CHANGED",
                )
            self._next_token += len(again)
            self._next_char += min(num_chars, len(delta.text))
            delta = replace(
                delta,
                text=delta.text[num_chars:],
                token_ids=delta.token_ids[num_tokens:],
                logprobs=delta.logprobs[num_tokens:],
            )
            if self._is_ended or not (delta.text or delta.token_ids or delta.finish_reason):
                return None
        self._add(delta)
        return delta

    def _add(self, delta: Delta) -> None:
        self.pieces.append(delta.text)
        self._token_ids.extend(delta.token_ids)
        self._num_chars += len(delta.text)
        self._next_token, self._next_char = len(self._token_ids), self._num_chars
        self._is_ended = delta.finish_reason is not None
        self.has_failed = delta.finish_reason is FinishReason.ERROR


class Received:
    """Gathers the messages of one answer; the base of both kinds of streams."""

    def __init__(self, request: Request) -> None:
        self.request_id = request.options.request_id
        """Names the request in the server's log; known from the first message on."""
        self.model = ""
        """The model that answers; known from the first message on."""
        self.prompt_logprobs: tuple[TokenLogprob, ...] = ()
        """From the first message on, if asked for."""
        self._request = request
        self._samples: dict[int, _Sample] = {}
        self._usage: Usage | None = None
        self._timings: Timings | None = None
        self._cache_source: CacheSource | None = None
        self._started = False

    @property
    def usage(self) -> Usage:
        """Tokens read and written. Raises RuntimeError before the end of the stream."""
        return _at_end(self._usage)

    @property
    def timings(self) -> Timings:
        """How long the answer took. Raises RuntimeError before the end of the stream."""
        return _at_end(self._timings)

    @property
    def cache_source(self) -> CacheSource | None:
        """The cache that the answer comes from, if it does. Raises RuntimeError before the end of
        the stream."""
        _at_end(self._usage)
        return self._cache_source

    def _may_go_on_after(self, error: TrunklineError) -> bool:
        """Whether the request may be sent again: it has brought forth nothing yet, or it would
        bring forth the same again."""
        if not self._started:
            return True
        sampling = self._request.options.sampling
        is_greedy = sampling.HasField("temperature") and sampling.temperature == 0.0
        return isinstance(error, UnavailableError) and (is_greedy or sampling.HasField("seed"))

    def _rewind(self) -> None:
        """The request is about to be sent again: what has arrived will be left out."""
        if self._started:
            self._request.options.request_id = self.request_id
        for sample in self._samples.values():
            sample.rewind()

    def _take(self, response: Response) -> Delta | None:
        """Adds a message to what is known; gives what is new of the delta in it."""
        self._started = True
        self.request_id = response.request_id or self.request_id
        self.model = response.model or self.model
        if response.prompt_logprobs:
            self.prompt_logprobs = tuple(map(TokenLogprob.of, response.prompt_logprobs))
        if response.HasField("usage"):
            self._usage = Usage.of(response.usage)
            self._cache_source = cache_source(response.cache_source)
        if response.HasField("timings"):
            self._timings = Timings.of(response.timings)
        if not response.HasField("delta"):
            return None
        delta = Delta.of(response.delta)
        return self._samples.setdefault(delta.index, _Sample()).take(delta)

    def _whole_texts(self) -> list[str]:
        samples = sorted(self._samples.items())
        failed = ", ".join(str(index) for index, sample in samples if sample.has_failed)
        if failed:
            raise InternalError(
                f"request {self.request_id}: the server failed at sample {failed}",
                reason="SAMPLE_FAILED",
            )
        return ["".join(sample.pieces) for _, sample in samples]


def _at_end(value: _T | None) -> _T:
    if value is None:
        raise RuntimeError("known when the stream has been read to its end")
    return value
