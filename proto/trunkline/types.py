"""What answers are made of, as plain values."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from google.protobuf.duration_pb2 import Duration

from trunkline.v1 import inference_pb2 as pb


class CacheSource(StrEnum):
    """Where an answer comes from, if no replica has made it."""

    EXACT = "exact"
    """The same request was answered before."""
    SEMANTIC = "semantic"
    """A request that means the same was answered before."""
    UNKNOWN = "unknown"
    """A source that is newer than this SDK."""


class FinishReason(StrEnum):
    """Why a sample ended."""

    STOP = "stop"
    """A stop string, a stop token or the model's end-of-sequence token."""
    LENGTH = "length"
    """`max_tokens`, or the end of the model's context."""
    ERROR = "error"
    """The sample failed alone."""
    UNKNOWN = "unknown"
    """A reason that is newer than this SDK."""


_FINISH_REASONS = {
    pb.FINISH_REASON_UNSPECIFIED: None,
    pb.FINISH_REASON_STOP: FinishReason.STOP,
    pb.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    pb.FINISH_REASON_ERROR: FinishReason.ERROR,
}


_CACHE_SOURCES = {
    pb.CACHE_SOURCE_UNSPECIFIED: None,
    pb.CACHE_SOURCE_EXACT: CacheSource.EXACT,
    pb.CACHE_SOURCE_SEMANTIC: CacheSource.SEMANTIC,
}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is system, user, assistant or what the model knows."""

    role: str
    content: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token and the natural logarithm of its probability before temperature and filters."""

    token_id: int
    logprob: float
    text: bytes
    """The token's bytes; a character may span several tokens."""

    @classmethod
    def of(cls, message: pb.TokenLogprob.Candidate) -> Self:
        """The value of a message of the contract."""
        return cls(message.token_id, message.logprob, message.text)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probabilities at one position."""

    token: Candidate
    """The token that stands there."""
    top: tuple[Candidate, ...]
    """The likeliest tokens there, best first."""

    @classmethod
    def of(cls, message: pb.TokenLogprob) -> Self:
        """The value of a message of the contract."""
        return cls(Candidate.of(message.token), tuple(map(Candidate.of, message.top)))


@dataclass(frozen=True, slots=True)
class Delta:
    """What has been added to one sample."""

    text: str
    token_ids: tuple[int, ...] = ()
    index: int = 0
    """Which of the `n` samples."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each token, if asked for."""
    finish_reason: FinishReason | None = None
    """Set in the sample's last delta."""
    stopped_by: str | int | None = None
    """The stop string or the stop token id that ended the sample."""

    @classmethod
    def of(cls, message: pb.Delta) -> Self:
        """The value of a message of the contract."""
        stopped_by = message.WhichOneof("stopped_by")
        return cls(
            text=message.text,
            token_ids=tuple(message.token_ids),
            index=message.index,
            logprobs=tuple(map(TokenLogprob.of, message.logprobs)),
            finish_reason=_FINISH_REASONS.get(message.finish_reason, FinishReason.UNKNOWN),
            stopped_by=getattr(message, stopped_by) if stopped_by else None,
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request read and wrote."""

    prompt_tokens: int
    completion_tokens: int
    """Of all samples together."""
    cached_prompt_tokens: int
    """Prompt tokens that were found in the prefix cache."""

    @classmethod
    def of(cls, message: pb.Usage) -> Self:
        """The value of a message of the contract."""
        return cls(message.prompt_tokens, message.completion_tokens, message.cached_prompt_tokens)


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds from admission at the router."""

    queue_s: float
    """Until the engine took the request up."""
    time_to_first_token_s: float
    total_s: float
    """Until the last token."""

    @classmethod
    def of(cls, message: pb.Timings) -> Self:
        """The value of a message of the contract."""
        return cls(
            seconds(message.queue), seconds(message.time_to_first_token), seconds(message.total)
        )


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can be asked for."""

    name: str
    max_model_len: int
    """Tokens of prompt and output together."""
    vocab_size: int
    ready_replicas: int
    models: tuple[str, ...] = ()
    """If the name stands for other models: those that may answer."""

    @classmethod
    def of(cls, message: pb.Model) -> Self:
        """The value of a message of the contract."""
        return cls(
            name=message.name,
            max_model_len=message.max_model_len,
            vocab_size=message.vocab_size,
            ready_replicas=message.ready_replicas,
            models=tuple(message.models),
        )


def cache_source(value: pb.CacheSource.ValueType) -> CacheSource | None:
    """The value of the contract's enum."""
    return _CACHE_SOURCES.get(value, CacheSource.UNKNOWN)


def seconds(duration: Duration) -> float:
    """A duration in seconds."""
    return duration.ToTimedelta().total_seconds()
