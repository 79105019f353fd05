"""Where a step's time goes."""

from collections import defaultdict
from time import perf_counter


class Stopwatch:
    """Adds up the seconds between laps by the name of what was done in them."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._last = perf_counter()

    def start(self) -> None:
        """What happened before now counts for nothing."""
        self._last = perf_counter()

    def lap(self, name: str) -> None:
        """The time since the last lap was spent on `name`."""
        now = perf_counter()
        self.seconds[name] += now - self._last
        self._last = now
