"""Keeps requests away from a replica that fails them (circuit breaker; Nygard, "Release It!")."""

import time
from collections.abc import Callable
from enum import IntEnum


class BreakerState(IntEnum):
    """What is known of a replica, in the order of metrics' values."""

    CLOSED = 0
    """It works: requests may go there."""
    HALF_OPEN = 1
    """It has had time to recover: one request may try."""
    OPEN = 2
    """It fails: no request goes there."""


class Breaker:
    """Opens after `max_failures` in a row, and half-opens `cooldown_s` later.

    Then one request is let through: its success closes the breaker, its failure opens it anew.
    """

    def __init__(
        self, max_failures: int, cooldown_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.cooldown_s = cooldown_s
        self._max_failures = max_failures
        self._clock = clock
        self._failures = 0
        self._opened_at: float | None = None
        self._is_probing = False

    @property
    def state(self) -> BreakerState:
        """What it is now."""
        if self._opened_at is None:
            return BreakerState.CLOSED
        is_cool = self._clock() >= self._opened_at + self.cooldown_s
        return BreakerState.HALF_OPEN if is_cool else BreakerState.OPEN

    @property
    def lets_through(self) -> bool:
        """Whether a request may be sent now."""
        state = self.state
        return state is BreakerState.CLOSED or (
            state is BreakerState.HALF_OPEN and not self._is_probing
        )

    def send(self) -> bool:
        """A request is being sent; whether it is the one that tries a half-open breaker."""
        is_probe = self.state is BreakerState.HALF_OPEN
        self._is_probing = self._is_probing or is_probe
        return is_probe

    def succeed(self) -> None:
        """The replica has answered a request."""
        self._failures = 0
        self._opened_at = None
        self._is_probing = False

    def fail(self) -> bool:
        """The replica has failed a request; returns whether that has opened the breaker."""
        self._failures += 1
        state = self.state
        if state is BreakerState.OPEN or (
            state is BreakerState.CLOSED and self._failures < self._max_failures
        ):
            return False
        self._opened_at = self._clock()
        self._is_probing = False
        return True

    def end_probe(self) -> None:
        """The one that was to try has ended, whatever came of it: another may."""
        self._is_probing = False
