"""Samples during which others worked are taken again, so often and no more."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.bench.peers.samples import MOST_REPEATS, Reading, foreign_share, take

CORES = 4
START = Reading(wall_s=100.0, busy_s=900.0, own_s=50.0)


class Machine:
    """One second passes with each measurement, in which others take the given CPU seconds."""

    def __init__(self, *foreign_s: float) -> None:
        self._foreign_s = foreign_s
        self.now = START
        self.attempts: list[int] = []

    def measure(self, attempt: int) -> float:
        self.attempts.append(attempt)
        wall_s, busy_s, own_s = self.now
        self.now = Reading(wall_s + 1, busy_s + CORES / 2 + self._foreign_s[attempt], own_s + 2)
        return 10.0 + attempt

    @property
    def read(self) -> Callable[[], Reading]:
        return lambda: self.now


def test_a_quiet_machine_gives_the_first_sample() -> None:
    machine = Machine(0.0)
    assert take(machine.measure, machine.read, CORES) == (10.0, 0, False)


def test_a_spoiled_sample_is_discarded_and_taken_again_with_another_number() -> None:
    machine = Machine(1.0, 1.0, 0.1)
    assert take(machine.measure, machine.read, CORES) == (12.0, 2, False)
    assert machine.attempts == [0, 1, 2]


def test_where_it_never_gets_quiet_the_least_disturbed_is_kept_and_marked() -> None:
    foreign_s = [2.0] * MOST_REPEATS + [3.0]
    foreign_s[1] = 0.5
    machine = Machine(*foreign_s)
    assert take(machine.measure, machine.read, CORES) == (11.0, MOST_REPEATS, True)
    assert len(machine.attempts) == MOST_REPEATS + 1


@given(
    own_s=st.floats(0, 8),
    foreign_s=st.floats(0.05, 8),
    wall_s=st.floats(0.5, 60),
)
def test_the_share_is_of_all_cores_and_leaves_the_engine_out(
    own_s: float, foreign_s: float, wall_s: float
) -> None:
    after = Reading(START.wall_s + wall_s, START.busy_s + own_s + foreign_s, START.own_s + own_s)
    tick_s = 0.01 * CORES
    expected = (foreign_s - tick_s) / (CORES * wall_s)
    assert foreign_share(START, after, CORES) == pytest.approx(expected, abs=1e-9)


def test_a_tick_of_each_core_is_nobodys_fault() -> None:
    after = Reading(START.wall_s + 0.02, START.busy_s + 0.04, START.own_s)
    assert foreign_share(START, after, CORES) == pytest.approx(0.0, abs=1e-9)
