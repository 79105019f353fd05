"""Only a wait that takes too long ends a Patience, however many and however far apart they are."""

import asyncio

import pytest

from router.patience import Patience


async def test_a_wait_without_end_is_cancelled() -> None:
    endless = asyncio.get_running_loop().create_future()

    async def wait() -> None:
        async with Patience(0.01) as patience:
            await patience.wait(asyncio.sleep(0))
            await patience.wait(endless)

    with pytest.raises(TimeoutError):
        await wait()
    assert endless.cancelled()


async def test_what_is_not_waited_for_by_it_may_take_any_time() -> None:
    timers_fired = asyncio.Event()
    async with Patience(0.001) as patience:
        assert await patience.wait(asyncio.sleep(0, "result")) == "result"
        asyncio.get_running_loop().call_later(0.01, timers_fired.set)
        await timers_fired.wait()
        assert await patience.wait(asyncio.sleep(0, "result")) == "result"


async def test_errors_and_cancellation_pass() -> None:
    async def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        async with Patience(10) as patience:
            await patience.wait(fail())
    entered = asyncio.Event()

    async def wait() -> None:
        async with Patience(10) as patience:
            entered.set()
            await patience.wait(asyncio.Event().wait())

    waiting = asyncio.create_task(wait())
    await entered.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
