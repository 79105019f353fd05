"""The steps of an engine that has nothing to compute."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple, Self

TOKEN: Final = ord("a")
"""All output: a letter. So are prompts, of which each letter is a token of its own code."""

_DIGITS: Final = 3
"""Of each figure that a prompt begins with."""


class Pace(NamedTuple):
    """When steps are, in each of which all streams of this pace get a token."""

    interval_ms: int
    """With 0, as soon as the tokens of the step before have been taken."""
    together: int
    """Streams that have to be there before the first step."""

    def in_prompt(self) -> str:
        """What a prompt begins with whose answer comes at this pace. Both are below 1,000."""
        return "".join(f"{figure:0{_DIGITS}}" for figure in self)

    @classmethod
    def of(cls, prompt: Sequence[int]) -> Self:
        """That of a prompt of such tokens."""
        digits = bytes(prompt[: 2 * _DIGITS])
        return cls(int(digits[:_DIGITS]), int(digits[_DIGITS:]))

    def until_step_s(self, now_s: float) -> float:
        """Seconds to the next step, which all who ask at about the same time agree on."""
        if not self.interval_ms:
            return 0.0
        interval_s = self.interval_ms / 1000
        wait_s = interval_s - now_s % interval_s
        # Timers ring early by part of a millisecond: the step that was due is not the next one.
        return wait_s if wait_s > interval_s / 2 else wait_s + interval_s


class Steps:
    """Of streams that each wait for their next token by themselves."""

    def __init__(self) -> None:
        self._arrived: Counter[Pace] = Counter()
        self._next: dict[Pace, asyncio.Event] = {}

    async def positions(self, prompt: str, max_tokens: int) -> AsyncIterator[int]:
        """Of the tokens of an answer: the first at once, the others with those of other streams."""
        pace = Pace.of(prompt.encode())
        self._arrived[pace] += 1
        if pace.together > 1 and pace in self._next:
            self._arrange(pace)
        yield 0
        for position in range(1, max_tokens):
            if pace not in self._next:
                self._next[pace] = asyncio.Event()
                self._arrange(pace)
            await self._next[pace].wait()
            yield position

    def _arrange(self, pace: Pace) -> None:
        """Have the next step made, unless streams are missing."""
        if self._arrived[pace] % pace.together == 0:
            loop = asyncio.get_running_loop()
            loop.call_later(pace.until_step_s(loop.time()), self._step, pace)

    def _step(self, pace: Pace) -> None:
        self._next.pop(pace).set()
