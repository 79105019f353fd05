"""How far a request has come, and when."""

import time
from dataclasses import dataclass, field

from google.protobuf.duration_pb2 import Duration
from trunkline.v1 import inference_pb2 as pb


@dataclass(slots=True)
class Progress:
    """Counts of one request, and times on time.monotonic()."""

    admitted_at: float
    replica: str = ""
    """Which one had it last."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Of all samples together, as delivered."""
    cached_prompt_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    """Of the samples that have ended."""
    started_at: float | None = None
    """When the engine took the request up, if it said so."""
    first_token_at: float | None = None
    last_token_at: float | None = None

    def count(self, delta: pb.Delta) -> None:
        """Note tokens that have just come."""
        if delta.token_ids:
            self.completion_tokens += len(delta.token_ids)
            self.last_token_at = time.monotonic()
            self.first_token_at = self.first_token_at or self.last_token_at
        if delta.finish_reason:
            name = pb.FinishReason.Name(delta.finish_reason)
            self.finish_reasons.append(name.removeprefix("FINISH_REASON_").lower())

    @property
    def queue_time_s(self) -> float | None:
        """From admission until the engine took the request up."""
        return None if self.started_at is None else self.started_at - self.admitted_at

    @property
    def time_to_first_token_s(self) -> float | None:
        """Since admission."""
        return None if self.first_token_at is None else self.first_token_at - self.admitted_at

    @property
    def time_per_output_token_s(self) -> float | None:
        """Mean gap between the tokens of one sample, if there was more than one token."""
        if self.first_token_at is None or self.last_token_at is None:
            return None
        gaps = self.completion_tokens / max(len(self.finish_reasons), 1) - 1
        return (self.last_token_at - self.first_token_at) / gaps if gaps > 0 else None

    def usage(self) -> pb.Usage:
        """The counts for the client."""
        return pb.Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_prompt_tokens=self.cached_prompt_tokens,
        )

    def timings(self) -> pb.Timings:
        """The times for the client; those that are not known are absent."""
        return pb.Timings(
            queue=self._since_admission(self.started_at),
            time_to_first_token=self._since_admission(self.first_token_at),
            total=self._since_admission(self.last_token_at),
        )

    def _since_admission(self, moment: float | None) -> Duration | None:
        if moment is None:
            return None
        duration = Duration()
        duration.FromNanoseconds(int((moment - self.admitted_at) * 1e9))
        return duration
