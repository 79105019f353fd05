"""How a client reaches a router."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Final

import grpc

CHANNEL_OPTIONS: Final = (
    # Log-probabilities of a long prompt come in one message.
    ("grpc.max_receive_message_length", 256 * 2**20),
    # gRPC waits a second before it connects again, longer than our own first pauses.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5000),
)


@dataclass(frozen=True, slots=True)
class TLS:
    """Encrypts the connection; PEM files.

    Without `ca` the server is checked against gRPC's own list of authorities. `cert` and `key`
    identify the client to a server that demands it.
    """

    ca: str | PathLike[str] | None = None
    cert: str | PathLike[str] | None = None
    key: str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError(f"cert={self.cert!r}, key={self.key!r}: give both or none")

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises OSError if one cannot be read."""
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.ca),
            private_key=_read(self.key),
            certificate_chain=_read(self.cert),
        )


def headers(api_key: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata that goes with each call."""
    return () if api_key is None else (("authorization", f"Bearer {api_key}"),)


def _read(path: str | PathLike[str] | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
