"""What Linux tells of CPU time and memory in /proc (see proc(5))."""

import os
from collections.abc import Iterator
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
# Fields of /proc/PID/stat behind the command's closing parenthesis.
_PGRP = 2
_TIMES = slice(11, 15)  # utime, stime, and those of children that have ended
# Fields of the first line of /proc/stat; user time has that of guests in it.
_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")
_COLUMNS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


def busy_seconds(proc: Path = _PROC) -> float:
    """CPU time that all processors have worked since boot, or were withheld by a hypervisor."""
    with (proc / "stat").open() as lines:
        ticks = dict(zip(_COLUMNS, map(int, next(lines).split()[1:]), strict=False))
    return sum(ticks[name] for name in _BUSY) / _TICKS_PER_S


def cpu_seconds(group: int, proc: Path = _PROC) -> float:
    """CPU time of a process group's processes, and of their children that have ended."""
    return sum(sum(map(int, fields[_TIMES])) for _, fields in _members(group, proc)) / _TICKS_PER_S


def peak_bytes(group: int, proc: Path = _PROC) -> int:
    """The greatest resident sizes of a process group's processes, added up."""
    return sum(_peak_bytes(process) for process, _ in _members(group, proc))


def _members(group: int, proc: Path) -> Iterator[tuple[Path, list[str]]]:
    for process in proc.glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended since the list was made
        if int(fields[_PGRP]) == group:
            yield process, fields


def _peak_bytes(process: Path) -> int:
    try:
        status = (process / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    sizes = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(sizes[0]) * 1024 if sizes else 0  # those that have ended have none
