"""`trunkline bench peers`: the engines offline."""

import json
import math
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from ops.bench.hardware import measure
from ops.bench.limits import sizes
from ops.bench.peers.launch import Launcher
from ops.bench.peers.registry import all_engines, select
from ops.bench.peers.rows import hardware_rows, rows_by_work, share_of_limit
from ops.bench.peers.turns import RSS, START, Tell, Turns
from ops.bench.peers.works import BATCH, BATCH_OUTPUT, BATCH_PROMPT, PROMPT, WORKS
from ops.bench.report import Row, print_rows

WORK_NAMES = (*(work.name for work in WORKS), START, RSS)


def bench_offline(
    model: Path, engine_names: Sequence[str], work_names: Sequence[str], runs: int
) -> list[Row]:
    """Measure, print a table for each work and what failed, and return all rows.

    No names mean all. Raises ValueError for a name that there is not, OSError if `model` holds no
    config.json.
    """
    unknown = set(work_names) - set(WORK_NAMES)
    if unknown:
        raise ValueError(f"works: got {min(unknown)!r}, expected any of {', '.join(WORK_NAMES)}")
    threads = os.cpu_count() or 1
    engines = all_engines(threads, _kv_gib(model))
    engines = select(engines, engine_names) if engine_names else engines
    wanted = set(work_names or WORK_NAMES)
    vocab_size = json.loads((model / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    hardware = measure()
    # Like Ctrl-C, so that no engine is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    turns = Turns(engines, Launcher(model, threads).launch, vocab_size, _teller())
    comparison = turns.compare(
        [work for work in WORKS if work.name in wanted], runs, starts=bool(wanted & {START, RSS})
    )
    machine = hardware_rows(hardware, threads)
    print_rows(machine, "hardware")
    tables = rows_by_work(comparison, engines, model, hardware)
    tables = {name: rows for name, rows in tables.items() if name in wanted}
    for name, rows in tables.items():
        print_rows(rows, f"trunkline bench peers: {name}", {"of limit": share_of_limit})
    for name, reason in comparison.failures.items():
        print(f"{name}: {reason}")
    return [*machine, *(row for rows in tables.values() for row in rows)]


def _kv_gib(model: Path) -> int:
    """Room for the largest work's keys and values in bf16: what is reserved may be resident."""
    tokens = BATCH * (BATCH_PROMPT + BATCH_OUTPUT) + 2 * PROMPT
    return math.ceil(tokens * sizes(model, 2, 2).kv_token * 2 / 2**30)


def _teller() -> Tell:
    """Shows messages with the seconds since now."""
    begin_s = monotonic()

    def tell(message: str) -> None:
        print(f"{monotonic() - begin_s:6.0f} s  {message}", file=sys.stderr, flush=True)

    return tell
