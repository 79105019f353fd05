"""The processors that this process may compute on."""

import os
import sys
from pathlib import Path

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def usable_cpus(cpu_max: Path = _CPU_MAX) -> int:
    """Cores, at least one, within the process's affinity and its container's quota.

    A core's second hardware thread is not counted: it shares the units that kernels keep busy.

    Args:
        cpu_max: The control group's quota and period in microseconds (cgroup v2).
    """
    cores = {_core_of(cpu) for cpu in os.sched_getaffinity(0)}
    return max(1, min(len(cores), _quota(cpu_max)))


def _core_of(cpu: int) -> str:
    """What the hardware threads of a core, and no others, have in common."""
    siblings = Path(_TOPOLOGY.format(cpu))
    return siblings.read_text() if siblings.exists() else str(cpu)


def _quota(cpu_max: Path) -> int:
    """Whole processors that the control group may use."""
    if not cpu_max.exists():
        return sys.maxsize
    quota, period = cpu_max.read_text().split()
    return sys.maxsize if quota == "max" else int(quota) // int(period)
