"""Rounds delay nothing while the loop keeps up, and batch what comes while it is behind."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

import router.fleet.rounds as rounds_module
from router.fleet.rounds import MOST_S, Rounds


class Clock:
    """Stands for the module `time`."""

    elapsed_s = 0.0
    computed_s = 0.0

    def monotonic(self) -> float:
        return self.elapsed_s

    def thread_time(self) -> float:
        return self.computed_s


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


@pytest.mark.parametrize("computed_s", [0.04, 0.06])
async def test_a_loop_that_computed_most_of_the_time_looks_for_more_frames(
    monkeypatch: pytest.MonkeyPatch, computed_s: float
) -> None:
    """Those that were woken may have gone on long after the round had ended."""
    clock = Clock()
    monkeypatch.setattr(rounds_module, "time", clock)
    taken: list[int] = []
    sizes: list[int] = []
    rounds = Rounds(taken.append)
    rounds.add(0)
    await settle()
    clock.elapsed_s, clock.computed_s = 0.1, computed_s
    for frame in (1, 2):
        rounds.add(frame)
        sizes.append(len(taken))
    assert sizes == ([1, 1] if computed_s > 0.1 / 2 else [2, 2])
    async with asyncio.timeout(20):
        while len(taken) < 3:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.001)
    assert taken == [0, 1, 2]


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
