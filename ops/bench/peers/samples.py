"""Samples that nobody else's work has spoiled, as far as they can be had."""

from collections.abc import Callable
from typing import NamedTuple

MOST_REPEATS = 4
_FOREIGN_SHARE = 0.04
_TICK_S = 0.01


class Reading(NamedTuple):
    """Clocks at one moment, in seconds since some beginning."""

    wall_s: float
    busy_s: float
    """CPU time of all processors."""
    own_s: float
    """CPU time of the engine."""


class Sample(NamedTuple):
    """A figure, and how it came about."""

    value: float
    repeats: int
    """Attempts that were discarded."""
    spoiled: bool
    """Whether others worked during this one too."""


def foreign_share(before: Reading, after: Reading, cores: int) -> float:
    """The share of the cores' time between two readings that others than the engine took.

    The processors' time is counted in ticks, so a tick of each core is not held against anybody.
    """
    busy_s = after.busy_s - before.busy_s
    own_s = after.own_s - before.own_s
    foreign_s = max(busy_s - own_s - _TICK_S * cores, 0.0)
    return foreign_s / max(cores * (after.wall_s - before.wall_s), _TICK_S)


def take(measure: Callable[[int], float], read: Callable[[], Reading], cores: int) -> Sample:
    """Call `measure` with the attempt's number until no more than 4 % of the time was foreign.

    After `MOST_REPEATS` repeats, the attempt with the least foreign load is kept and marked.
    """
    attempts: list[tuple[float, float]] = []
    while True:
        before = read()
        value = measure(len(attempts))
        share = foreign_share(before, read(), cores)
        if share <= _FOREIGN_SHARE:
            return Sample(value, len(attempts), spoiled=False)
        attempts.append((share, value))
        if len(attempts) > MOST_REPEATS:
            return Sample(min(attempts)[1], MOST_REPEATS, spoiled=True)
