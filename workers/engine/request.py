"""What comes into the engine and what goes out of it."""

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from workers.engine.mean_pool import Floats
from workers.engine.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to continue. `params.n` samples come out of it."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    priority: int = 0
    """Higher is served first."""
    deadline: float | None = None
    """On time.monotonic(); the request ends with FinishReason.DEADLINE when it passes."""
    cache_salt: bytes = b""
    """Mixed into the block hashes, so that tenants do not share prefixes."""
    num_generated: int = 0
    """How many of the last prompt tokens the sample has brought forth elsewhere; they count as
    output."""
    first_index: int = 0
    """Index of the first sample."""
    embed: bool = False
    """Wants an embedding of the prompt in place of tokens; nothing is sampled."""
    yields: bool = False
    """Makes way for those that do not."""

    @property
    def sample_indices(self) -> range:
        """The indices of its samples."""
        return range(self.first_index, self.first_index + self.params.n)


class FinishReason(Enum):
    """Why a sample ended."""

    STOP = "stop"
    LENGTH = "length"
    ERROR = "error"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log-probability of a token and of the likeliest ones, before any filter."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]
    """(token id, logprob), best first."""


class Started(NamedTuple):
    """How the engine took a request up."""

    cached_prompt_tokens: int
    """Prompt tokens found in the prefix cache."""
    queue_s: float
    """Seconds that the request waited."""


@dataclass(slots=True)
class SampleOutput:
    """New tokens of one sample, as one step made them."""

    request_id: str
    index: int
    token_ids: list[int]
    position: int = 0
    """Tokens of the sample before these."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    """The token that ended the sample, which stands in token_ids too."""
    error: str = ""
    """What went wrong, with FinishReason.ERROR."""
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    """With the request's first output, if asked for: one per prompt token from the second on."""
    started: Started | None = None
    """With the request's first tokens."""
    embedding: Floats | None = None
    """In place of tokens, if the request is for an embedding: float32 [hidden_size]."""
    request_done: bool = False
    """Whether all samples of the request have ended."""
