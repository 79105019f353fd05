"""The better of two random replicas."""

from collections.abc import Sequence
from random import Random

from router.policies.policy import C, Choice
from router.policies.route_request import RouteRequest


class PowerOfTwo:
    """Power of two choices (Mitzenmacher 2001): nearly as even as the least loaded replica,
    without the herd that follows one stale report.
    """

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(self, request: RouteRequest, candidates: Sequence[C]) -> Choice[C]:
        """The less loaded of two candidates drawn without replacement."""
        drawn = self._random.sample(candidates, min(2, len(candidates)))
        chosen = min(drawn, key=lambda candidate: candidate.load.pending_sequences)
        return Choice(chosen, "power_of_two", request.num_prompt_tokens)
