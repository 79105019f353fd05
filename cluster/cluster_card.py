"""What a machine that joins a cluster has to know of it, in the head's key-value store."""

import platform
from importlib.metadata import version
from typing import Protocol

from pydantic import BaseModel, ConfigDict

_KEY, _NAMESPACE = b"cluster", b"trunkline"


class KeyValueStore(Protocol):
    """What a client of Ray's head offers of it. Methods raise ray.exceptions.RpcError."""

    def internal_kv_put(self, key: bytes, value: bytes, overwrite: bool, namespace: bytes) -> int:
        """Set a key; returns how many are new."""

    def internal_kv_get(self, key: bytes, namespace: bytes) -> bytes | None:
        """The value of a key."""


class Versions(BaseModel):
    """What has to be the same on all machines, for they exchange Python objects."""

    model_config = ConfigDict(frozen=True)

    trunkline: str
    ray: str
    python: str

    def __str__(self) -> str:
        return f"Trunkline {self.trunkline} with Ray {self.ray} and Python {self.python}"


class ClusterCard(BaseModel):
    """A cluster, as its head describes it."""

    model_config = ConfigDict(frozen=True)

    versions: Versions
    drain_timeout_s: float
    """How long replicas on a machine that leaves may take to finish."""


def versions_here() -> Versions:
    """Those of this process."""
    return Versions(
        trunkline=version("trunkline-cluster"),
        ray=version("ray"),
        python=platform.python_version(),
    )


def write_card(head: KeyValueStore, card: ClusterCard) -> None:
    """Put the card where machines that join look for it. Raises ray.exceptions.RpcError."""
    head.internal_kv_put(_KEY, card.model_dump_json().encode(), True, _NAMESPACE)


def read_card(head: KeyValueStore) -> ClusterCard | None:
    """The card; None if there is none (yet). Raises ray.exceptions.RpcError."""
    found = head.internal_kv_get(_KEY, _NAMESPACE)
    return None if found is None else ClusterCard.model_validate_json(found)
