"""Rounds delay nothing while the loop keeps up, and batch what comes while it is behind."""

import asyncio
import time

from hypothesis import given
from hypothesis import strategies as st

from router.fleet.rounds import MOST_S, Rounds


async def settle() -> None:
    """Let everything run that is ready."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_frame_is_handed_on_at_once_when_the_loop_keeps_up() -> None:
    taken: list[int] = []
    rounds = Rounds(taken.append)
    rounds.add(1)
    assert taken == [1]


async def test_frames_that_come_within_a_round_wait_for_each_other() -> None:
    taken: list[int] = []
    woken = asyncio.Event()
    sizes: list[int] = []

    def hand_on(frame: int) -> None:
        taken.append(frame)
        woken.set()

    rounds = Rounds(hand_on)

    async def client() -> None:
        while len(taken) < 4:
            await woken.wait()
            woken.clear()
            sizes.append(len(taken))
            time.sleep(MOST_S)  # noqa: ASYNC251 - it is what makes the loop late

    working = asyncio.create_task(client())
    await settle()
    for frame in range(4):
        rounds.add(frame)
    assert taken == [0]
    await asyncio.wait_for(working, 20)
    assert taken == [0, 1, 2, 3]
    assert sizes == [1, 4]


async def test_flush_hands_on_what_waits_and_nothing_twice() -> None:
    taken: list[int] = []
    rounds = Rounds(taken.append)
    for frame in range(3):
        rounds.add(frame)
    rounds.flush()
    assert taken == [0, 1, 2]
    rounds.flush()
    await settle()
    assert taken == [0, 1, 2]


@given(pauses=st.lists(st.integers(0, 3), max_size=30))
def test_every_frame_is_handed_on_once_and_in_order(pauses: list[int]) -> None:
    async def feed() -> list[int]:
        taken: list[int] = []
        rounds = Rounds(taken.append)
        for frame, pause in enumerate(pauses):
            rounds.add(frame)
            for _ in range(pause):
                await asyncio.sleep(0)
        async with asyncio.timeout(20):
            while len(taken) < len(pauses):  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0.001)
        return taken

    assert asyncio.run(feed()) == list(range(len(pauses)))
