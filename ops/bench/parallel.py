"""Ranks of one replica: what their exchange costs, and what they gain."""

from collections.abc import Callable, Sequence

from ops.bench.exchange import bench_all_reduce
from ops.bench.gangs import bench_pipeline, bench_tensor
from ops.bench.plans import bench_plan
from ops.bench.report import Row
from ops.models.shapes import NAMED

FIGURES: dict[str, Callable[[str, int], list[Row]]] = {
    "all_reduce": lambda model, runs: bench_all_reduce(runs),
    "plan": lambda model, runs: bench_plan(runs),
    "tensor": bench_tensor,
    "pipeline": bench_pipeline,
}
"""What can be measured, by name: with a model of a named shape, in a number of runs."""


def bench_parallel(names: Sequence[str], model: str, runs: int) -> list[Row]:
    """The rows of the named figures. Raises ValueError for a name of no figure or shape."""
    if unknown := [name for name in names if name not in FIGURES]:
        raise ValueError(
            f"figures: got {', '.join(unknown)}, expected some of {', '.join(FIGURES)}"
        )
    if model not in NAMED:
        raise ValueError(f"model: got {model}, expected one of {', '.join(NAMED)}")
    return [row for name in names for row in FIGURES[name](model, runs)]
