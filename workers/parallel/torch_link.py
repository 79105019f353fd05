"""A link between two ranks over torch.distributed."""

from collections import deque

import torch
from torch import distributed
from torch.distributed import ProcessGroup, Work

from workers.parallel.group import RankLostError
from workers.parallel.torch_wait import TorchWait

_MAX_AHEAD = 4
"""Messages that the sender may run ahead by."""


class TorchLink:
    """Link, either end. Messages are broadcasts to one: gloo's receive cannot be aborted."""

    def __init__(self, process_group: ProcessGroup) -> None:
        """`process_group` is of the two ranks only, and has its own limit for each operation."""
        self._rank = process_group.rank()
        self._wait = TorchWait(process_group)
        self._on_the_way: deque[tuple[Work, torch.Tensor]] = deque()

    def send(self, x: torch.Tensor) -> None:
        """See Link."""
        while len(self._on_the_way) >= _MAX_AHEAD:
            self._wait.finish(self._on_the_way.popleft()[0])
        message = x.clone()
        work = self._broadcast(message, self._rank)
        if work is not None:
            self._on_the_way.append((work, message))
        self.check()

    def receive(self, out: torch.Tensor) -> None:
        """See Link."""
        self._wait.finish(self._broadcast(out, 1 - self._rank))
        self.check()

    def check(self) -> None:
        """See Link."""
        if self._wait.failure is not None:
            raise RankLostError(f"link between stages: {self._wait.failure}")

    def abort(self) -> None:
        """End all waits at this end, now and later; from any thread."""
        self._wait.abort()

    def close(self) -> None:
        """Let go of the process group; messages fail from then on."""
        self._wait.close()

    def _broadcast(self, x: torch.Tensor, sender: int) -> Work | None:
        return self._wait.start(
            lambda: distributed.broadcast(
                x, group=self._wait.group, group_src=sender, async_op=True
            )
        )
