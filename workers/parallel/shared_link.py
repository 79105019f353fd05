"""A link between two ranks of one machine, in memory that they share."""

import torch

from workers.kernels.cpu_collectives import CpuCollectives, Mailbox
from workers.parallel.group import RankLostError
from workers.parallel.segment import Segment

NUM_SLOTS = 16
CAPACITY = 2**20
"""Bytes of a slot; memory is taken up by what messages touch only."""


class SharedMemoryLink:
    """Link, by kernels that can be recorded; either end.

    A recorded call cannot raise: `check` does.
    """

    def __init__(
        self,
        collectives: CpuCollectives,
        segment: Segment,
        limit_s: float,
        num_slots: int = NUM_SLOTS,
        capacity: int = CAPACITY,
    ) -> None:
        """`segment` is of `segment_bytes(...)`, zeros at first; waits end after `limit_s`."""
        self._collectives = collectives
        self._mailbox = Mailbox(segment.memory, num_slots, capacity, limit_s)

    @staticmethod
    def segment_bytes(
        collectives: CpuCollectives, num_slots: int = NUM_SLOTS, capacity: int = CAPACITY
    ) -> int:
        """What the segment takes."""
        return collectives.mailbox_bytes(num_slots, capacity)

    def send(self, x: torch.Tensor) -> None:
        """See Link."""
        self._collectives.send(self._mailbox, x)
        self.check()

    def receive(self, out: torch.Tensor) -> None:
        """See Link."""
        self._collectives.receive(self._mailbox, out)
        self.check()

    def check(self) -> None:
        """See Link."""
        failure = self._collectives.failure(self._mailbox.memory)
        if failure is None:
            return
        end = ("sender", "receiver")[failure.rank]
        what = {
            "late": f"the {end} did not answer within {self._mailbox.limit_s:g} s",
            "aborted": "the exchange was aborted",
            "disagreed": "a message is not of the size that was expected",
        }[failure.reason]
        raise RankLostError(f"link between stages: {what}")

    def abort(self) -> None:
        """End all waits at both ends, now and later; from any thread."""
        self._collectives.abort(self._mailbox.memory)
