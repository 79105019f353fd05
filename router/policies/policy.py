"""What a policy is asked, and what it answers."""

from collections.abc import Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from router.policies.replica_load import ReplicaLoad
from router.policies.route_request import RouteRequest


class Candidate(Protocol):
    """A replica as policies see it."""

    @property
    def member(self) -> str:
        """Name of this incarnation of the replica."""

    @property
    def load(self) -> ReplicaLoad:
        """What it has to do."""


C = TypeVar("C", bound=Candidate)


class Choice(NamedTuple, Generic[C]):
    """A replica, and why it is the one."""

    candidate: C
    basis: str
    """What the policy went by, in a word."""
    uncached_tokens: int
    """Prompt tokens that it will have to compute, as far as is known."""
    cached_tokens: Sequence[int] = ()
    """Prompt tokens that each candidate was believed to hold; empty where nobody looked."""
    costs: Sequence[float] = ()
    """Of each candidate, of which the least wins; empty where none were computed."""
    fetched_tokens: Sequence[int] = ()
    """Of `cached_tokens`, those that it has to fetch from host memory; empty where none has any."""


class Policy(Protocol):
    """Chooses the replica for a request; one instance serves one model.

    The caller books the request on the chosen replica before it asks again.
    """

    def choose(self, request: RouteRequest, candidates: Sequence[C]) -> Choice[C]:
        """One of `candidates`, which are never none."""
