"""How long a step's plan takes from one process to another, through shared memory.

``python -m ops.bench.plans PLANS ECHOES`` is the other one: it sends back what it reads.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from time import perf_counter

import numpy as np

from cluster.child_process import tied
from ops.bench.report import Row
from workers.engine.plan_ring import PlanRing
from workers.engine.step_plan import Ints
from workers.kernels.cpu_collectives import Futex
from workers.kernels.library import Library, load_library
from workers.parallel.segment import Segment

_LIMIT_S = 60.0
_WARM_UP = 20
_INTS = {"decode, 8 sequences of 1k tokens": 600, "decode, 64 sequences of 4k tokens": 16_800}
"""int64 elements of plans: rows, places and block tables."""
_NUM_BYTES = PlanRing.segment_bytes(1)


def bench_plan(runs: int, calls: int = 500) -> list[Row]:
    """Microseconds from a rank to another: half of there and back, median of so many calls.

    Raises RuntimeError without the CPU kernels, which ranks share memory by.
    """
    library = load_library()
    if library is None:
        raise RuntimeError("plans go through shared memory only where the CPU kernels are")
    plans, echoes = Segment.create(_NUM_BYTES), Segment.create(_NUM_BYTES)
    there = PlanRing(Futex(library), plans, 1)
    back = PlanRing(Futex(library), echoes, 1, 0)
    with _echoing(plans.path, echoes.path):
        found = {
            work: [_median_us(there, back, size, calls) for _ in range(runs)]
            for work, size in _INTS.items()
        }
        there.end()
    return [
        Row.over(
            values,
            bench="parallel",
            work=work,
            model="",
            engine="shared memory",
            metric="plan to a rank",
            unit="us",
        )
        for work, values in found.items()
    ]


@contextmanager
def _echoing(plans: str, echoes: str) -> Iterator[None]:
    command = tied([sys.executable, "-m", __spec__.name, plans, echoes])
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            yield
        except BaseException:
            process.kill()
            raise


def _median_us(there: PlanRing, back: PlanRing, size: int, calls: int) -> float:
    plan: Ints = np.zeros(size, dtype=np.int64)
    taken = []
    for _ in range(_WARM_UP + calls):
        start = perf_counter()
        there.write(plan, _LIMIT_S)
        back.read()
        taken.append(perf_counter() - start)
    return 1e6 * median(taken[_WARM_UP:]) / 2


def _echo(library: Library, plans: str, echoes: str) -> None:
    there = PlanRing(Futex(library), Segment.open(plans, _NUM_BYTES), 1, 0)
    back = PlanRing(Futex(library), Segment.open(echoes, _NUM_BYTES), 1)
    while (plan := there.read()) is not None:
        back.write(plan, _LIMIT_S)


def main(arguments: Sequence[str]) -> None:
    """Be the other process."""
    library = load_library()
    assert library is not None, "the first process has them"
    _echo(library, *arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
