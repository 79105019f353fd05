"""The workload or trace that a command was asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.bench.workloads.named import SCRIPTS, sessions
from ops.bench.workloads.session import Session
from ops.bench.workloads.trace import TraceError, read_trace
from ops.failure import UsageError


@dataclass(frozen=True, slots=True)
class Chosen:
    """Sessions by seed, and what to call them."""

    name: str
    sessions: Callable[[str], Sequence[Session]]


def choose(workload: str | None, trace: Path | None, requests: int, scale: float) -> Chosen:
    """The workload of that name with at least so many requests, or that many of a trace.

    Raises UsageError for a name that there is not, or a file that is no trace.
    """
    if trace is not None:
        if workload is not None:
            raise UsageError("--workload and --trace: expected only one of them")
        try:
            read_trace(trace, "", requests)
        except (OSError, TraceError) as error:
            raise UsageError(f"--trace: {error}") from error
        return Chosen(trace.name, lambda seed: read_trace(trace, seed, requests))
    if workload is None or workload not in SCRIPTS:
        raise UsageError(f"--workload: got {workload!r}, expected one of {', '.join(SCRIPTS)}")
    name = workload if scale == 1.0 else f"{workload} x {scale:g}"
    return Chosen(
        f"{name}, {requests} requests", lambda seed: sessions(workload, seed, requests, scale)
    )
