"""What is known about a call beside its message."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Call:
    """How a request came in.

    It has all that is read of a client's metadata or headers, but for the name of a request: who a
    client is, follows from its key alone, and what goes to replicas from the message and the
    tenant. Whatever else a client sends along is not even looked at.
    """

    deadline: float | None = None
    """On time.monotonic(): when the client stops waiting, if its protocol says so."""
    peer: str = ""
    """Address of the client, for logs."""
    authorization: str = field(default="", repr=False)
    """The metadata or header of this name, as it came."""
