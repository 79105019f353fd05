"""Each replica in its turn."""

from bisect import bisect_right
from collections.abc import Sequence

from router.policies.policy import C, Choice
from router.policies.route_request import RouteRequest


class RoundRobin:
    """Goes through the replicas by name; the turn survives replicas that come and go."""

    def __init__(self) -> None:
        self._last = ""

    def choose(self, request: RouteRequest, candidates: Sequence[C]) -> Choice[C]:
        """The first candidate after the one chosen last."""
        ordered = sorted(candidates, key=lambda candidate: candidate.member)
        names = [candidate.member for candidate in ordered]
        chosen = ordered[bisect_right(names, self._last) % len(ordered)]
        self._last = chosen.member
        return Choice(chosen, "round_robin", request.num_prompt_tokens)
