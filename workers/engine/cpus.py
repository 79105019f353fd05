"""The processors that this process may compute on."""

import os
import sys
from pathlib import Path

import psutil

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def usable_cpus(cpu_max: Path = _CPU_MAX) -> int:
    """Cores, at least one, within the process's affinity and its container's quota.

    A core's second hardware thread is not counted: it shares the units that kernels keep busy.

    Args:
        cpu_max: The control group's quota and period in microseconds (cgroup v2).
    """
    logical = psutil.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or logical
    allowed = len(os.sched_getaffinity(0)) * physical // logical
    return max(1, min(allowed, _quota(cpu_max)))


def _quota(cpu_max: Path) -> int:
    """Whole processors that the control group may use."""
    if not cpu_max.exists():
        return sys.maxsize
    quota, period = cpu_max.read_text().split()
    return sys.maxsize if quota == "max" else int(quota) // int(period)
