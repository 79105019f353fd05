"""What one load consists of, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ops.bench.router_load.pace import Pace

Protocol = Literal["grpc", "http", "handle"]
"""The last is Ray Serve's own, for callers within its cluster."""
Kind = Literal["stream", "whole", "tokenize"]


@dataclass(frozen=True, slots=True)
class Load:
    """Clients that each send one request after the other; or, flooded, one each and all at once."""

    protocol: Protocol
    kind: Kind
    clients: int
    requests: int
    """Of all clients together."""
    max_tokens: int
    interval_ms: int = 0
    """Between two tokens of a stream."""
    is_flood: bool = False
    """The streams' steps begin when all are there; with no pause, replicas are then as fast as
    their readers."""

    @property
    def spread_s(self) -> float:
        """The clients begin one by one within the time of one request."""
        return self.interval_ms * self.max_tokens / 1000

    @property
    def pace(self) -> Pace:
        """Of its streams."""
        return Pace(self.interval_ms, self.clients if self.is_flood else 1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the clients saw."""

    first_s: Sequence[float]
    """From sending each request to its first token, or its answer if it is not streamed."""
    messages: int
    """With tokens."""
    tokens: int
