"""Ranks of one replica: what their exchange costs, and what they gain."""

from collections.abc import Callable, Sequence

from ops.bench.exchange import bench_all_reduce
from ops.bench.report import Row

FIGURES: dict[str, Callable[[int], list[Row]]] = {
    "all_reduce": bench_all_reduce,
}
"""What can be measured, by name, in a number of runs."""


def bench_parallel(names: Sequence[str], runs: int) -> list[Row]:
    """The rows of the named figures. Raises ValueError for a name that is none of FIGURES."""
    if unknown := [name for name in names if name not in FIGURES]:
        raise ValueError(f"{', '.join(unknown)}: expected some of {', '.join(FIGURES)}")
    return [row for name in names for row in FIGURES[name](runs)]
