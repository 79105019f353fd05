"""What one load consists of, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Protocol = Literal["grpc", "http"]
Kind = Literal["stream", "whole", "tokenize"]


@dataclass(frozen=True, slots=True)
class Load:
    """Clients that each send one request after the other."""

    protocol: Protocol
    kind: Kind
    clients: int
    requests: int
    """Of all clients together."""
    max_tokens: int
    interval_ms: int
    """Between two tokens of a stream; with 0 the replica is as fast as its reader."""

    @property
    def spread_s(self) -> float:
        """The clients begin one by one within the time of one request."""
        return self.interval_ms * self.max_tokens / 1000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the clients saw."""

    first_s: Sequence[float]
    """From sending each request to its first token, or its answer if it is not streamed."""
    messages: int
    """With tokens."""
    tokens: int
