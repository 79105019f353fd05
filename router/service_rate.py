"""How fast requests end."""

from collections.abc import Callable

_WEIGHT = 0.1
_LEAST_S = 0.05
_MOST_S = 60.0


class ServiceRate:
    """The mean time between two ends while there is work, as a moving average."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last = clock()
        self._interval_s: float | None = None

    def begin(self) -> None:
        """Work begins after a pause, which says nothing about the rate."""
        self._last = self._clock()

    def end(self) -> None:
        """A request has ended."""
        now = self._clock()
        interval_s = now - self._last
        self._last = now
        if self._interval_s is None:
            self._interval_s = interval_s
        else:
            self._interval_s += _WEIGHT * (interval_s - self._interval_s)

    @property
    def interval_s(self) -> float | None:
        """The mean time between two ends, if one is known."""
        return self._interval_s

    def time_to_next_end_s(self) -> float:
        """When the next request is expected to end; a second if nothing is known."""
        if self._interval_s is None:
            return 1.0
        return min(max(self._interval_s, _LEAST_S), _MOST_S)
