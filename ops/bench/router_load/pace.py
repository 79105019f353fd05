"""The steps of an engine that has nothing to compute."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

Step = Callable[[], Awaitable[bool]]
"""Sends a token of every sequence; whether there are sequences left."""

TOKEN: Final = ord("a")
"""All output: a letter. So are prompts, of which each letter is a token of its own code."""

_ZERO = ord("0")
_UNIT_MS = 5


async def run_steps(interval_s: float, step: Step) -> None:
    """Call `step` every `interval_s`, or as soon as it has returned, until nothing is left."""
    loop = asyncio.get_running_loop()
    due = loop.time() + interval_s
    await asyncio.sleep(interval_s)
    while await step():
        due = max(due + interval_s, loop.time())
        await asyncio.sleep(due - loop.time())


def first_letter(interval_ms: int) -> str:
    """What a prompt begins with whose output is made in steps of so many milliseconds.

    A multiple of 5, at most 200.
    """
    return chr(_ZERO + interval_ms // _UNIT_MS)


def interval_s(first_token: int) -> float:
    """The same, from the first token of a prompt."""
    return (first_token - _ZERO) * _UNIT_MS / 1000
