"""The routers that a client may send requests to."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from trunkline.errors import TrunklineError, UnavailableError

_DOWN_S: Final = 2.0
_ITS_OWN_FAULT: Final = frozenset({"UNAVAILABLE", "SHUTTING_DOWN"})
"""Reasons of UnavailableError for which another router may do better at once."""


def addresses_of(address: str | Sequence[str]) -> tuple[str, ...]:
    """One address, or several. Raises ValueError if there is none."""
    addresses = (address,) if isinstance(address, str) else tuple(address)
    if not addresses:
        raise ValueError("address: got none, expected `host:port` or several of them")
    return addresses


class Rotation:
    """Takes turns among routers, from one drawn by lot on; those that have failed are left out for
    a while, unless all have. Threads may share it.
    """

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Routers are numbers below `count`."""
        self._count = count
        self._clock = clock
        self._next = random.randrange(count)
        self._down_until = [0.0] * count
        self._lock = threading.Lock()

    def next(self) -> int:
        """The router whose turn it is."""
        with self._lock:
            now = self._clock()
            turns = [(self._next + i) % self._count for i in range(self._count)]
            chosen = next((i for i in turns if self._down_until[i] <= now), turns[0])
            self._next = chosen + 1
            return chosen

    def fail(self, router: int, error: TrunklineError) -> None:
        """A call to this router has ended so."""
        if isinstance(error, UnavailableError) and error.reason in _ITS_OWN_FAULT:
            with self._lock:
                self._down_until[router] = self._clock() + _DOWN_S
