"""Any replica."""

from collections.abc import Sequence
from random import Random

from router.policies.policy import C, Choice
from router.policies.route_request import RouteRequest


class RandomChoice:
    """Draws uniformly, so that routers that know nothing of each other spread their requests."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(self, request: RouteRequest, candidates: Sequence[C]) -> Choice[C]:
        """A candidate, each as likely as the others."""
        return Choice(self._random.choice(candidates), "random", request.num_prompt_tokens)
