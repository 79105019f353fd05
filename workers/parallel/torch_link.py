"""A link between two ranks over torch.distributed."""

from collections import deque
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed import ProcessGroup, Work

from workers.parallel.group import RankLostError

_MAX_AHEAD = 4
"""Messages that the sender may run ahead by."""


class TorchLink:
    """Link, either end."""

    def __init__(self, process_group: ProcessGroup, limit_s: float) -> None:
        """`process_group` is of the two ranks only; waits end within `limit_s`."""
        self._group = process_group
        self._peer = 1 - process_group.rank()
        self._limit = timedelta(seconds=limit_s)
        self._on_the_way: deque[tuple[Work, torch.Tensor]] = deque()
        self._failure: str | None = None

    def send(self, x: torch.Tensor) -> None:
        """See Link."""
        self.check()
        message = x.clone()
        try:
            while len(self._on_the_way) >= _MAX_AHEAD:
                self._finish(self._on_the_way.popleft()[0])
            work = distributed.isend(message, group=self._group, group_dst=self._peer)
        except RuntimeError as error:
            raise self._fail(str(error)) from error
        assert work is not None, "this rank is of the group"
        self._on_the_way.append((work, message))

    def receive(self, out: torch.Tensor) -> None:
        """See Link."""
        self.check()
        try:
            work = distributed.irecv(out, group=self._group, group_src=self._peer)
            assert work is not None, "this rank is of the group"
            self._finish(work)
        except RuntimeError as error:
            raise self._fail(str(error)) from error

    def check(self) -> None:
        """See Link."""
        if self._failure is not None:
            raise self._fail(self._failure)

    def abort(self) -> None:
        """Let all further messages fail at this end; from any thread.

        A wait under way ends with its limit, or when the other end closes its connection.
        """
        self._failure = self._failure or "the exchange was aborted"

    def _finish(self, work: Work) -> None:
        if not work.wait(self._limit):
            raise self._fail("a message has not arrived")

    def _fail(self, reason: str) -> RankLostError:
        self._failure = self._failure or reason
        return RankLostError(f"link between stages: {self._failure}")
