"""How much memory the KV cache may take."""

from pathlib import Path

import psutil
import torch

_CPU_SHARE = 0.25
"""Of the free memory, so that several replicas and their neighbours fit on one machine."""
_CUDA_SHARE = 0.9
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Memory that the KV cache may use on `device` after the weights are loaded."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * _CUDA_SHARE)
    return int(min(psutil.virtual_memory().available, _cgroup_free_bytes()) * _CPU_SHARE)


def _cgroup_free_bytes() -> float:
    """What a container's limit leaves; infinite without a limit."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = (_CGROUP / "memory.current").read_text().strip()
    except OSError:
        return float("inf")
    return float("inf") if limit == "max" else float(int(limit) - int(used))
