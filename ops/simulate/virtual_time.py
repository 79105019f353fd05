"""Time that passes from event to event."""

import heapq
from collections.abc import Callable
from itertools import count


class VirtualTime:
    """Calls what is due, in order; what is due at one time, in the order it was asked for."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def now(self) -> float:
        """Seconds since the beginning."""
        return self._now_s

    def at(self, time_s: float, call: Callable[[], None]) -> None:
        """Call it at that time, or now if that has passed."""
        heapq.heappush(self._due, (max(time_s, self._now_s), next(self._numbers), call))

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call it after so long."""
        self.at(self._now_s + delay_s, call)

    def every(self, period_s: float, first_s: float, call: Callable[[], None]) -> None:
        """Call it at `first_s` and once per period from then on."""

        def again() -> None:
            call()
            self.after(period_s, again)

        self.at(first_s, again)

    def run(self, until: Callable[[], bool]) -> None:
        """Let time pass until the condition holds, or nothing is due any more."""
        while self._due and not until():
            self._now_s, _, call = heapq.heappop(self._due)
            call()
