"""A limit on retries, so that a cluster in trouble is not made to do its work several times."""

import time
from collections.abc import Callable

_LEAST_PER_S = 10.0
"""Retries that are affordable whatever the traffic: a router with little must not wait for more."""


class RetryBudget:
    """A token bucket that requests fill and retries empty (after Finagle's RetryBudget).

    In the long run retries are at most `share` of all requests. `burst` of them may come at once:
    losing a replica moves everything that it was doing.
    """

    def __init__(
        self, share: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._share = share
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._filled_at = clock()

    def earn(self) -> None:
        """A request has come."""
        self._fill(self._share)

    def spend(self) -> bool:
        """Pay for a retry; returns whether there is enough for it."""
        self._fill(0.0)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _fill(self, earned: float) -> None:
        now = self._clock()
        earned += (now - self._filled_at) * _LEAST_PER_S
        self._tokens = min(self._burst, self._tokens + earned)
        self._filled_at = now
