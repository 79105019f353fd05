"""Disciplines that give each request a place once and for all."""

from bisect import bisect_left, insort
from collections.abc import Callable

from router.queue.waiter import Waiter

Key = Callable[[Waiter], float]

_STEP_S = 5.0
"""By how much later a request may come and still be first, for each priority it is higher."""


class Ordered:
    """Serves the waiter with the least key first; of equal ones, the one that came first.

    No key grows while it waits, and keys of those that come grow with time: none waits for ever.
    """

    def __init__(self, key: Key) -> None:
        self._key = key
        self._places: list[tuple[float, int, Waiter]] = []

    def __len__(self) -> int:
        return len(self._places)

    def add(self, waiter: Waiter) -> None:
        """One more waits."""
        insort(self._places, self._place(waiter))

    def discard(self, waiter: Waiter) -> None:
        """It waits no more; harmless if it did not wait."""
        at = self.num_before(waiter)
        if at < len(self._places) and self._places[at][2] is waiter:
            del self._places[at]

    def pop(self) -> Waiter:
        """The next one, which then waits no more. Some must wait."""
        return self._places.pop(0)[2]

    def last(self) -> Waiter:
        """The one that is turned away when there are too many. Some must wait."""
        return self._places[-1][2]

    def num_before(self, waiter: Waiter) -> int:
        """How many of those that wait now will come before it, if nobody else comes."""
        return bisect_left(self._places, self._place(waiter))

    def next_yields(self) -> bool:
        """Never: the order is all there is."""
        return False

    def begin(self, waiter: Waiter) -> None:
        """Nothing depends on it."""

    def end(self, waiter: Waiter) -> None:
        """Nothing depends on it."""

    def serve(self, waiter: Waiter, tokens: float) -> None:
        """Nothing depends on it."""

    def _place(self, waiter: Waiter) -> tuple[float, int, Waiter]:
        return self._key(waiter), waiter.number, waiter


def first_come(waiter: Waiter) -> float:
    """In the order of coming."""
    return waiter.number


def by_priority(waiter: Waiter) -> float:
    """Higher priorities first, but not for ever: each step up is worth some seconds of waiting."""
    return waiter.came_at - _STEP_S * waiter.priority


def by_deadline(waiter: Waiter) -> float:
    """The earliest deadline first."""
    return waiter.deadline
