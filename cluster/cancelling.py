"""Cancellations that got lost."""

import asyncio


def raise_if_cancelled() -> None:
    """Raise CancelledError if the current task has been asked to end and goes on nevertheless.

    `asyncio.wait_for`, which the Redis client sends all commands with, drops a cancellation that
    comes just as it succeeds (until Python 3.12). Loops around commands call this.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
