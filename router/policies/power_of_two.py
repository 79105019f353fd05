"""The better of two random replicas."""

from collections.abc import Sequence
from random import Random

from router.policies.policy import C


class PowerOfTwo:
    """Power of two choices (Mitzenmacher 2001): nearly as even as the least loaded replica,
    without the herd that follows one stale report.
    """

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(self, candidates: Sequence[C]) -> C:
        """The less loaded of two candidates drawn without replacement."""
        drawn = self._random.sample(candidates, min(2, len(candidates)))
        return min(drawn, key=lambda candidate: candidate.pending_sequences)
