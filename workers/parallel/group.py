"""How ranks exchange tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from workers.parallel.layout import ParallelLayout, Place


class RankLostError(Exception):
    """A rank did not answer in time, or has ended: the gang can compute no more."""


class Group(Protocol):
    """Ranks that call the same collectives in the same order.

    Tensors are contiguous and of one dtype (float32, bfloat16 or int64; sums of the first two only)
    and size on all ranks. Sums are in float32, in the order of ranks, and bit-equal on all of them.
    After a collective that failed the tensors hold nothing of use, and `check` raises; until then
    nothing hangs.
    """

    @property
    def rank(self) -> int:
        """This rank's number within the group."""

    @property
    def size(self) -> int:
        """Ranks in the group."""

    def all_reduce(self, x: torch.Tensor) -> None:
        """Replace x by its sum over all ranks."""

    def all_gather(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """out [size, *x.shape]: every rank's x, in order."""

    def all_to_all(
        self,
        x: torch.Tensor,
        counts: Sequence[int],
        out: torch.Tensor,
        out_counts: Sequence[int],
    ) -> None:
        """Send rows of x to all ranks: the first counts[0] to rank 0, and so on.

        Args:
            x: [sum(counts), ...].
            counts: Rows for each rank.
            out: [sum(out_counts), ...]; takes rank 0's rows for this rank, then rank 1's ...
            out_counts: Rows from each rank.
        """

    def check(self) -> None:
        """Raise RankLostError if any collective so far has failed."""


class Link(Protocol):
    """A one-way pipe to or from a rank of the next pipeline stage; messages keep their order."""

    def send(self, x: torch.Tensor) -> None:
        """Hand over a contiguous tensor, which may change as soon as this returns.

        Raises RankLostError, but not when it is played from a recording.
        """

    def receive(self, out: torch.Tensor) -> None:
        """Wait for the next message, of out's size and dtype. Raises as `send` does."""

    def check(self) -> None:
        """Raise RankLostError if anything so far has failed."""


class SoloGroup:
    """A group of one."""

    rank = 0
    size = 1

    def all_reduce(self, x: torch.Tensor) -> None:
        """See Group."""

    def all_gather(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """See Group."""
        out[0].copy_(x)

    def all_to_all(
        self,
        x: torch.Tensor,
        counts: Sequence[int],
        out: torch.Tensor,
        out_counts: Sequence[int],
    ) -> None:
        """See Group."""
        out.copy_(x)

    def check(self) -> None:
        """See Group."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """One rank's place, and the other ranks as it reaches them."""

    layout: ParallelLayout
    place: Place
    dense: Group
    """See ParallelLayout.dense_group."""
    experts: Group
    """See ParallelLayout.expert_group."""
    sequence: Group
    """See ParallelLayout.sequence_group."""
    previous: Link | None
    """From the stage before; None in the first."""
    following: Link | None
    """To the stage after; None in the last."""

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank embeds tokens."""
        return self.previous is None

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank computes logits."""
        return self.following is None

    def check(self) -> None:
        """Raise RankLostError if any exchange so far has failed."""
        for group in (self.dense, self.experts, self.sequence, self.previous, self.following):
            if group is not None:
                group.check()


def solo_ranks() -> Ranks:
    """Of a replica that is one rank."""
    layout, group = ParallelLayout(), SoloGroup()
    return Ranks(layout, layout.place(0), group, group, group, None, None)
