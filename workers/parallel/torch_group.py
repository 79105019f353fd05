"""A group of ranks over torch.distributed: gloo between machines, nccl between GPUs."""

from collections.abc import Sequence

import torch
from torch import distributed
from torch.distributed import ProcessGroup, Work

from workers.kernels.arguments import ROW_DTYPES
from workers.parallel.group import RankLostError
from workers.parallel.torch_wait import TorchWait


class TorchGroup:
    """Group.

    Sums are gathered and added here: backends add in the type of the tensor, and in an order that
    depends on its size. On a GPU collectives only queue up; `check` waits for the last.
    """

    def __init__(self, process_group: ProcessGroup) -> None:
        """`process_group` has its own limit for each operation."""
        self._wait = TorchWait(process_group)
        self._queued: Work | None = None
        self.rank = process_group.rank()
        self.size = process_group.size()

    def all_reduce(self, x: torch.Tensor) -> None:
        """See Group."""
        if x.dtype not in ROW_DTYPES:
            raise TypeError(f"x: {x.dtype}, expected one of {ROW_DTYPES}")
        parts = x.new_empty(self.size, *x.shape)
        self.all_gather(x, parts)
        total = parts[0].float()
        for part in parts[1:]:
            total += part
        x.copy_(total)

    def all_gather(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """See Group."""
        rows = list(out.unbind())
        work = self._wait.start(
            lambda: distributed.all_gather(rows, x, group=self._wait.group, async_op=True)
        )
        self._take(work, x)

    def all_to_all(
        self,
        x: torch.Tensor,
        counts: Sequence[int],
        out: torch.Tensor,
        out_counts: Sequence[int],
    ) -> None:
        """See Group."""
        work = self._wait.start(
            lambda: distributed.all_to_all_single(
                out, x, list(out_counts), list(counts), group=self._wait.group, async_op=True
            )
        )
        self._take(work, x)

    def check(self) -> None:
        """See Group."""
        self._wait.finish(self._queued)
        self._queued = None
        if self._wait.failure is not None:
            raise RankLostError(f"group of {self.size}, rank {self.rank}: {self._wait.failure}")

    def abort(self) -> None:
        """End all waits of this rank, now and later; from any thread."""
        self._wait.abort()

    def close(self) -> None:
        """Let go of the process group; collectives fail from then on."""
        self._wait.close()

    def _take(self, work: Work | None, x: torch.Tensor) -> None:
        if work is None or not x.is_cuda:
            self._wait.finish(work)
        else:
            work.wait()  # by the stream
            self._queued = work
