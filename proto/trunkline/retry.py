"""When a request that has failed is sent again."""

import random
import time
from dataclasses import dataclass
from typing import Final

from trunkline.errors import OverloadedError, TrunklineError, UnavailableError
from trunkline.routers import Rotation


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how fast a request that was refused or broken off is sent again.

    Pauses double from `initial_pause_s` up to `max_pause_s`, each shortened by a random part of up
    to one half so that clients do not return together. A server that asks for longer gets it, but
    above `max_pause_s` the error is raised, for the caller to decide. `max_attempts=1` never
    retries.
    """

    max_attempts: int = 4
    initial_pause_s: float = 0.1
    max_pause_s: float = 10.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or not 0 <= self.initial_pause_s <= self.max_pause_s:
            raise ValueError(
                f"{self}: wants max_attempts >= 1, 0 <= initial_pause_s <= max_pause_s"
            )

    def pause_s(self, error: TrunklineError, failed_attempts: int, jitter: float) -> float | None:
        """Seconds to wait after `failed_attempts` (>= 1), `jitter` in [0, 1); None to give up."""
        asked_s = error.retry_after_s or 0.0
        if failed_attempts >= self.max_attempts or not _may_retry(error):
            return None
        if asked_s > self.max_pause_s:
            return None
        doublings = min(failed_attempts - 1, 32)
        backoff_s = min(self.initial_pause_s * 2.0**doublings, self.max_pause_s) * (1 - jitter / 2)
        return max(backoff_s, asked_s * (1 + jitter / 2))


DEFAULT_RETRY: Final = RetryPolicy()


class Attempts:
    """The attempts at one request, bounded by a policy and by the request's deadline."""

    def __init__(self, policy: RetryPolicy, timeout_s: float | None, routers: Rotation) -> None:
        self._policy = policy
        self._routers = routers
        self._router = 0
        self._deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._failed = 0

    @property
    def time_left_s(self) -> float | None:
        """Seconds until the deadline, at least 0; None without one."""
        if self._deadline_s is None:
            return None
        return max(0.0, self._deadline_s - time.monotonic())

    def next_router(self) -> int:
        """The router for the next attempt."""
        self._router = self._routers.next()
        return self._router

    def pause_s(self, error: TrunklineError) -> float:
        """Counts a failed attempt and gives the seconds until the next; raises `error` at the last.

        A pause that the deadline would end is not begun.
        """
        self._failed += 1
        self._routers.fail(self._router, error)
        pause_s = self._policy.pause_s(error, self._failed, random.random())
        left_s = self.time_left_s
        if pause_s is None or (left_s is not None and pause_s >= left_s):
            raise error
        return pause_s


def _may_retry(error: TrunklineError) -> bool:
    if isinstance(error, OverloadedError):
        return error.retry_after_s is not None
    return isinstance(error, UnavailableError)
