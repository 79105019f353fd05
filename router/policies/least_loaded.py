"""The replica with the least to do."""

from collections.abc import Sequence
from random import Random

from router.policies.policy import C


class LeastLoaded:
    """Takes the replica with the fewest pending sequences."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(self, candidates: Sequence[C]) -> C:
        """A candidate than which none has less to do; ties are drawn."""
        least = min(candidate.pending_sequences for candidate in candidates)
        return self._random.choice([c for c in candidates if c.pending_sequences == least])
