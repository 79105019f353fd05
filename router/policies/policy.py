"""What a policy is asked, and what it sees."""

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """A replica as policies see it."""

    @property
    def member(self) -> str:
        """Name of this incarnation of the replica."""

    @property
    def pending_sequences(self) -> int:
        """Sequences it runs or will run, by its own word and what was sent since."""


C = TypeVar("C", bound=Candidate)


class Policy(Protocol):
    """Chooses the replica for a request; one instance serves one model.

    The caller books the request on the chosen replica before it asks again.
    """

    def choose(self, candidates: Sequence[C]) -> C:
        """One of `candidates`, which are never none."""
