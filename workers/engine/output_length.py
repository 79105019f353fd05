"""How long outputs will be, learned from those that have ended."""

from bisect import bisect_right
from collections import deque

from workers.engine.sequence import Sequence

_HISTORY = 512
_QUANTILE = 0.9


class OutputLength:
    """Predicts output lengths as a high quantile of recent ones (the "past" of past-future
    scheduling, Gong et al. 2025), so that cautious admission does not become timid."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=_HISTORY)
        self._sorted: list[int] = []

    def observe(self, num_output: int) -> None:
        """An output ended of its own accord after so many tokens."""
        self._recent.append(num_output)
        self._sorted = []

    def remaining(self, sequence: Sequence) -> int:
        """Tokens that the sample is expected to add still; at least 1."""
        done = sequence.num_output
        limit = sequence.group.max_output
        if sequence.group.request.params.ignore_eos:
            return max(1, limit - done)
        if not self._sorted:
            self._sorted = sorted(self._recent)
        longer = self._sorted[bisect_right(self._sorted, done) :]
        expected = longer[int(len(longer) * _QUANTILE)] if longer else limit
        return max(1, min(expected, limit) - done)
