"""A group of ranks of one machine, in memory that they share."""

from collections.abc import Sequence

import torch

from workers.kernels.cpu_collectives import CpuCollectives, Seat
from workers.parallel.group import RankLostError
from workers.parallel.segment import Segment

CAPACITY = 2**20
"""Bytes of each of a rank's two buffers; memory is taken up by what messages touch only."""


class SharedMemoryGroup:
    """Group, by kernels that can be recorded."""

    def __init__(
        self,
        collectives: CpuCollectives,
        segment: Segment,
        rank: int,
        size: int,
        limit_s: float,
        capacity: int = CAPACITY,
    ) -> None:
        """`segment` is of `segment_bytes(...)`, zeros at first; waits end after `limit_s`."""
        self._collectives = collectives
        self._seat = Seat(segment.memory, rank, size, capacity, limit_s)

    @staticmethod
    def segment_bytes(collectives: CpuCollectives, size: int, capacity: int = CAPACITY) -> int:
        """What the segment of `size` ranks takes."""
        return collectives.group_bytes(size, capacity)

    @property
    def rank(self) -> int:
        """See Group."""
        return self._seat.rank

    @property
    def size(self) -> int:
        """See Group."""
        return self._seat.size

    def all_reduce(self, x: torch.Tensor) -> None:
        """See Group."""
        self._collectives.all_reduce(self._seat, x)

    def all_gather(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """See Group."""
        self._collectives.all_gather(self._seat, x, out)

    def all_to_all(
        self,
        x: torch.Tensor,
        counts: Sequence[int],
        out: torch.Tensor,
        out_counts: Sequence[int],
    ) -> None:
        """See Group."""
        self._collectives.all_to_all(self._seat, x, counts, out, out_counts)

    def check(self) -> None:
        """See Group."""
        failure = self._collectives.failure(self._seat.memory)
        if failure is None:
            return
        what = {
            "late": f"rank {failure.rank} did not answer within {self._seat.limit_s:g} s",
            "aborted": "the exchange was aborted",
            "disagreed": f"rank {failure.rank} called another collective, or with another size",
        }[failure.reason]
        raise RankLostError(f"group of {self.size}, rank {self.rank}: {what}")

    def abort(self) -> None:
        """End all waits of all ranks, now and later; from any thread."""
        self._collectives.abort(self._seat.memory)
