"""The steps of an engine that has nothing to compute."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

Step = Callable[[], Awaitable[bool]]
"""Sends a token of every sequence; whether there are sequences left."""

TOKEN: Final = ord("a")
"""The only token that there is: a letter."""


async def run_steps(interval_s: float, step: Step) -> None:
    """Call `step` every `interval_s`, or as soon as it has returned, until nothing is left."""
    loop = asyncio.get_running_loop()
    due = loop.time() + interval_s
    await asyncio.sleep(interval_s)
    while await step():
        due = max(due + interval_s, loop.time())
        await asyncio.sleep(due - loop.time())


def interval_s(prompt: int) -> float:
    """A prompt's first token tells the milliseconds of the steps that its output is made in."""
    return prompt / 1000
