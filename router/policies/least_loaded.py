"""The replica with the least to do."""

from collections.abc import Sequence
from random import Random

from router.policies.policy import C, Choice
from router.policies.route_request import RouteRequest


class LeastLoaded:
    """Takes the replica with the fewest pending sequences."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(self, request: RouteRequest, candidates: Sequence[C]) -> Choice[C]:
        """A candidate than which none has less to do; ties are drawn."""
        pending = [candidate.load.pending_sequences for candidate in candidates]
        least = min(pending)
        ties = [c for c, p in zip(candidates, pending, strict=True) if p == least]
        return Choice(self._random.choice(ties), "least_loaded", request.num_prompt_tokens)
