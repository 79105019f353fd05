"""A task that is cancelled ends, also where its library loses the cancellation."""

import asyncio

import pytest

from cluster.cancelling import raise_if_cancelled


async def test_a_lost_cancellation_is_found_again() -> None:
    began = asyncio.Event()

    async def lose_it() -> None:
        while True:
            raise_if_cancelled()
            began.set()
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                continue

    task = asyncio.create_task(lose_it())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
