"""What an all-reduce takes between two ranks: in shared memory, and by gloo beside it.

``python -m ops.bench.exchange PORT CALLS RUNS`` is the second of them.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from torch._C._distributed_c10d import PrefixStore, TCPStore

from ops.bench.report import Row
from workers.kernels.library import Library, load_library
from workers.parallel.connect import Meeting, connect
from workers.parallel.group import Group
from workers.parallel.layout import ParallelLayout

_HOST = "127.0.0.1"
_COME_S = 60.0
_ROWS = (8, 64, 512)
_WIDTH = 1024
_WARM_UP = 20


class _Call(NamedTuple):
    engine: str
    group: Group
    run: Callable[[], None]


def bench_all_reduce(runs: int, calls: int = 500) -> list[Row]:
    """Microseconds for the sum of bfloat16 tensors of 1024 columns, by what carries it.

    One value per run: the median of so many calls. What carries takes turns in each run. Recorded
    is how a step does it, without Python; gloo's sums are computed as ranks compute them, by torch.
    """
    store = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
    with _second_rank(store.port, calls, runs):
        found = _measure(0, store, calls, runs)
    return [
        Row.over(
            values,
            bench="parallel",
            work=f"{rows} x {_WIDTH}",
            model="",
            engine=engine,
            metric="all-reduce of 2 ranks",
            unit="us",
        )
        for (rows, engine), values in found.items()
    ]


@contextmanager
def _second_rank(port: int, calls: int, runs: int) -> Iterator[None]:
    command = [sys.executable, "-m", __spec__.name, str(port), str(calls), str(runs)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            yield
        except BaseException:
            process.kill()
            raise


def _measure(
    rank: int, store: TCPStore, calls: int, runs: int
) -> dict[tuple[int, str], list[float]]:
    torch.set_num_threads(1)
    with ExitStack() as opened:

        def group(name: str, library: Library | None) -> Group:
            meeting = Meeting(
                layout=ParallelLayout(tensor=2),
                rank=rank,
                addresses=[_HOST, _HOST],
                store=PrefixStore(name, store),
                device=torch.device("cpu"),
                library=library,
                come_s=_COME_S,
                wait_s=_COME_S,
            )
            return opened.enter_context(connect(meeting)).ranks.dense

        library = load_library()
        gloo = group("gloo", None)
        shared = None if library is None else group("shared memory", library)
        found: dict[tuple[int, str], list[float]] = {}
        for rows in _ROWS:
            x = torch.zeros(rows, _WIDTH, dtype=torch.bfloat16)
            ways = [_called("gloo", gloo, x)]
            if library is not None and shared is not None:
                ways.append(_called("shared memory", shared, x))
                ways.append(_recorded("shared memory, recorded", shared, x, library))
            for _ in range(runs):
                for way in ways:
                    found.setdefault((rows, way.engine), []).append(_median_us(way, calls))
        return found


def _called(engine: str, group: Group, x: torch.Tensor) -> _Call:
    return _Call(engine, group, lambda: group.all_reduce(x))


def _recorded(engine: str, group: Group, x: torch.Tensor, library: Library) -> _Call:
    with library.recording() as program:
        group.all_reduce(x)
    return _Call(engine, group, program.play)


def _median_us(call: _Call, count: int) -> float:
    for _ in range(_WARM_UP):
        call.run()
    taken = []
    for _ in range(count):
        start = perf_counter()
        call.run()
        taken.append(perf_counter() - start)
    call.group.check()
    return 1e6 * median(taken)


def main(arguments: Sequence[str]) -> None:
    """Be the second rank: it does the same, and tells nobody how long it took."""
    port, calls, runs = map(int, arguments)
    store = TCPStore(_HOST, port, timeout=timedelta(seconds=_COME_S))
    _measure(1, store, calls, runs)


if __name__ == "__main__":
    main(sys.argv[1:])
