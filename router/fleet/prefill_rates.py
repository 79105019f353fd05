"""How fast the replicas of one model read prompts, and write answers."""

from collections.abc import Callable
from statistics import median
from time import monotonic

_HALF_LIFE_S = 30.0
"""In which half of what sets a slow replica apart is no longer believed, unless it shows again."""
_PEAK_DECAY = 0.999
"""Of a replica's best decode rate, with each report: what it did once does not hold for ever."""


class PrefillRates:
    """The rates that replicas have learned of themselves, and what to believe where they have not.

    A replica that was slow once gets few prompts, and so no occasion to learn better: without
    occasions its rate drifts towards the typical one, until it gets a prompt again.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._learned: dict[str, tuple[float, float]] = {}
        self._typical = 0.0
        self._peaks: dict[str, float] = {}
        self._best_decode = 0.0

    @property
    def typical(self) -> float:
        """Median of the rates known, in tokens per second; 0 if none is."""
        return self._typical

    @property
    def best_decode(self) -> float:
        """Output tokens per second that a replica has reached with many sequences; 0 if none has
        decoded.

        Of all replicas, the best: one that had few sequences yet was slow for that reason alone,
        and would seem to be hindered by each of them, so that no second request went there.
        """
        return self._best_decode

    def learn_decode(self, member: str, tokens_per_s: float) -> None:
        """Take a replica's word for its rate of decoding; 0 if it knows none."""
        self._peaks[member] = max(tokens_per_s, _PEAK_DECAY * self._peaks.get(member, 0.0))
        self._best_decode = max(self._peaks.values())

    def learn(self, member: str, tokens_per_s: float) -> None:
        """Take a replica's word for its rate; 0 if it knows none."""
        known = self._learned.get(member)
        if tokens_per_s > 0.0 and (known is None or known[0] != tokens_per_s):
            self._learned[member] = tokens_per_s, self._clock()
            self._typical = median(rate for rate, _ in self._learned.values())

    def forget(self, member: str) -> None:
        """Strike out a replica that is gone."""
        self._peaks.pop(member, None)
        self._best_decode = max(self._peaks.values(), default=0.0)
        if self._learned.pop(member, None) is not None:
            rates = [rate for rate, _ in self._learned.values()]
            self._typical = median(rates) if rates else 0.0

    def believed(self, member: str) -> float:
        """A replica's rate in tokens per second; 0 if no replica's is known."""
        if member not in self._learned:
            return self._typical
        rate, at = self._learned[member]
        if rate >= self._typical:
            return rate
        belief: float = 0.5 ** ((self._clock() - at) / _HALF_LIFE_S)
        return self._typical + belief * (rate - self._typical)
