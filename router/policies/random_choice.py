"""Any replica."""

from collections.abc import Sequence
from random import Random

from router.policies.policy import C


class RandomChoice:
    """Draws uniformly, so that routers that know nothing of each other spread their requests."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(self, candidates: Sequence[C]) -> C:
        """A candidate, each as likely as the others."""
        return self._random.choice(candidates)
