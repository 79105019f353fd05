"""How much memory the KV cache may take."""

from pathlib import Path

import psutil
import torch

CPU_SHARE = 0.25
_CUDA_SHARE = 0.9
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device, cpu_share: float | None) -> int:
    """Memory that the KV cache may use on `device` after the weights are loaded."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * _CUDA_SHARE)
    return int(
        min(psutil.virtual_memory().available, cgroup_free_bytes()) * (cpu_share or CPU_SHARE)
    )


def cgroup_free_bytes(folder: Path = _CGROUP) -> float:
    """What a container's limit leaves; infinite without a limit.

    Cached files, such as the weights just read, count as used there but make way.
    """
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return float("inf")
    if limit == "max":
        return float("inf")
    cached = int(stat["inactive_file"]) + int(stat["active_file"])
    return max(0.0, float(int(limit) - used + cached))
