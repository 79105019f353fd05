"""Handing on what a replica sends: at once, or in batches while the event loop is behind."""

import asyncio
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

Frame = TypeVar("Frame")

MOST_S: Final = 0.02
"""How long a frame is held back at most."""
_LEAST_GAP_S: Final = 0.001
_GAP_SHARE: Final = 0.25
"""If nothing comes for this share of a round's time, nothing has been waiting to be read."""
_BUSY_SHARE: Final = 0.5
"""A loop that computes for more than this share of the time may have frames that wait for it."""


class _Moment:
    """From when on it is asked how much the loop has computed."""

    __slots__ = ("_computed_s", "at")

    def __init__(self) -> None:
        self.at = time.monotonic()
        self._computed_s = time.thread_time()

    def was_busy(self) -> bool:
        """Whether it has computed for most of the time since then."""
        elapsed_s = time.monotonic() - self.at
        computed_s = time.thread_time() - self._computed_s
        return elapsed_s > _LEAST_GAP_S and computed_s > _BUSY_SHARE * elapsed_s


class Rounds(Generic[Frame]):
    """Hands on frames in rounds, each of which wakes whoever waits for something in them.

    A round ends when all of those have run; meanwhile nothing is read. If frames come right after
    it, one upon the other, the loop is behind: they are collected for as long as the round took,
    and become one round, and the tokens in them for one request one message. The same holds of a
    frame that finds a loop that has computed for most of the time since the round began, and goes
    on to. A loop that keeps up holds nothing back.
    """

    def __init__(self, hand_on: Callable[[Frame], None]) -> None:
        self._hand_on = hand_on
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Frame] = []
        self._is_under_way = False
        self._begun = _Moment()
        """When the last round began."""
        self._ended_at = 0.0
        self._gap_s = 0.0
        self._collect_until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, frame: Frame) -> None:
        """The next frame."""
        self._waiting.append(frame)
        if self._is_under_way or self._timer is not None:
            return
        now = time.monotonic()
        if now < self._ended_at + self._gap_s:
            self._collect()
        elif self._begun.was_busy():
            # Those that were woken may have begun to write only, which takes several turns.
            self._gap_s, self._collect_until = _LEAST_GAP_S, now + MOST_S
            self._collect()
        else:
            self._begin()

    def flush(self) -> None:
        """Hand on everything now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        frames, self._waiting = self._waiting, []
        for frame in frames:
            self._hand_on(frame)

    def _collect(self) -> None:
        """Wait for one more frame, if there is time."""
        if time.monotonic() + self._gap_s < self._collect_until:
            self._timer = self._loop.call_later(
                self._gap_s, self._look, len(self._waiting), _Moment()
            )
        else:
            self._begin()

    def _look(self, num_waiting: int, since: _Moment) -> None:
        self._timer = None
        if len(self._waiting) > num_waiting or since.was_busy():
            self._collect()
        else:
            self._begin()

    def _begin(self) -> None:
        self._is_under_way = True
        self._begun = _Moment()
        self.flush()
        # It comes after all that has just been woken.
        self._loop.call_soon(self._end)

    def _end(self) -> None:
        self._is_under_way = False
        self._ended_at = now = time.monotonic()
        longest_s = min(now - self._begun.at, MOST_S)
        self._gap_s = max(_GAP_SHARE * longest_s, _LEAST_GAP_S)
        self._collect_until = now + longest_s
        if self._waiting:
            self._collect()
