"""Being woken at a time that is put off again and again."""

import asyncio
import time


class Alarm:
    """Sets an event at a time, or a little after it.

    Putting it off costs next to nothing: the timer that there is rings at the old time, finds that
    it is too early, and is set anew. One for each token would take a tenth of a router's time.
    """

    def __init__(self, event: asyncio.Event) -> None:
        self._event = event
        self._loop = asyncio.get_running_loop()
        self._at = float("inf")
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")

    @property
    def is_set(self) -> bool:
        """Whether it will ring."""
        return self._timer is not None

    def set(self, at: float) -> None:
        """Ring at this time alone, on time.monotonic(); never, if it is infinity."""
        self._at = at
        if at < self._timer_at:
            self._start()

    def cancel(self) -> None:
        """Never ring."""
        self._at = self._timer_at = float("inf")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._at
        self._timer = self._loop.call_later(self._at - time.monotonic(), self._ring)

    def _ring(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        if time.monotonic() >= self._at:
            self._event.set()
        elif self._at < float("inf"):
            self._start()
