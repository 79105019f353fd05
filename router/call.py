"""What is known about a call beside its message."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Call:
    """How a request came in."""

    deadline: float | None = None
    """On time.monotonic(): when the client stops waiting, if its protocol says so."""
    peer: str = ""
    """Address of the client, for logs."""
