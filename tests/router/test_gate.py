"""The gate lets in so many and no more, and learns how soon one leaves."""

import asyncio
from contextlib import ExitStack

import pytest

from cluster.errors import Reason, RequestError
from router.gate import Gate


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_limit_holds_and_places_are_given_back() -> None:
    gate = Gate(2)
    with gate.enter():
        with gate.enter():
            assert gate.in_flight == 2
            with pytest.raises(RequestError) as caught, gate.enter():
                pass
            assert caught.value.reason is Reason.QUEUE_FULL
        with gate.enter():
            pass
    assert gate.in_flight == 0


def test_a_request_that_fails_gives_its_place_back() -> None:
    gate = Gate(1)
    with pytest.raises(ValueError, match="broken"), gate.enter():
        raise ValueError("broken")
    assert gate.in_flight == 0


def test_retry_after_is_the_learned_time_between_ends() -> None:
    clock = Clock()
    gate = Gate(1, clock)
    assert retry_after(gate) == 1.0
    for _ in range(100):
        clock.now += 500.0  # a pause, which is not to count
        with gate.enter():
            clock.now += 2.5
    assert retry_after(gate) == pytest.approx(2.5, rel=0.01)


def test_retry_after_follows_a_change_of_pace() -> None:
    clock = Clock()
    gate = Gate(1, clock)
    for seconds in [1.0] * 50 + [4.0] * 50:
        with gate.enter():
            clock.now += seconds
    assert retry_after(gate) == pytest.approx(4.0, rel=0.05)


def retry_after(gate: Gate) -> float | None:
    with gate.enter(), pytest.raises(RequestError) as caught, gate.enter():
        pass
    return caught.value.retry_after_s


def test_a_closed_gate_lets_nothing_in() -> None:
    gate = Gate(1)
    gate.close()
    with pytest.raises(RequestError) as caught, gate.enter():
        pass
    assert caught.value.reason is Reason.SHUTTING_DOWN


async def test_drained_waits_for_the_last_one() -> None:
    gate = Gate(5)
    with ExitStack() as inside:
        inside.enter_context(gate.enter())
        gate.close()
        waiting = asyncio.create_task(gate.drained())
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting
