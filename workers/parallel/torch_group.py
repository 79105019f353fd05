"""A group of ranks over torch.distributed: gloo between machines, nccl between GPUs."""

from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed import ProcessGroup, Work

from workers.kernels.arguments import ROW_DTYPES
from workers.parallel.group import RankLostError


class TorchGroup:
    """Group. The process group ends its own waits within `limit_s`.

    Sums are gathered and added here: backends add in the type of the tensor, and in an order that
    depends on its size.
    """

    def __init__(self, process_group: ProcessGroup, limit_s: float) -> None:
        self._group = process_group
        self._limit = timedelta(seconds=limit_s)
        self._last: Work | None = None
        self._failure: str | None = None
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
        self._run(lambda: distributed.all_gather(rows, x, group=self._group, async_op=True))

    def all_to_all(
        self,
        x: torch.Tensor,
        counts: Sequence[int],
        out: torch.Tensor,
        out_counts: Sequence[int],
    ) -> None:
        """See Group."""
        self._run(
            lambda: distributed.all_to_all_single(
                out, x, list(out_counts), list(counts), group=self._group, async_op=True
            )
        )

    def check(self) -> None:
        """See Group. Waits for what runs on a GPU."""
        if self._last is not None and self._failure is None:
            last, self._last = self._last, None
            self._guard(lambda: last.wait(self._limit))
        if self._failure is not None:
            raise RankLostError(f"group of {self.size}, rank {self.rank}: {self._failure}")

    def abort(self) -> None:
        """End all further collectives of this rank at once; from any thread.

        A wait under way ends with its limit, or when the others close their connections.
        """
        self._failure = self._failure or "the exchange was aborted"

    def _run(self, start: Callable[[], Work | None]) -> None:
        def run() -> None:
            work = start()
            assert work is not None, "this rank is of the group"
            work.wait()
            self._last = None if work.is_completed() else work

        if self._failure is None:
            self._guard(run)

    def _guard(self, action: Callable[[], object]) -> None:
        # Torch has no type of its own for the errors of a backend.
        try:
            action()
        except RuntimeError as error:
            self._failure = self._failure or str(error)
