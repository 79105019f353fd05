"""Which KV blocks a sequence rank holds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

IntArray = npt.NDArray[np.int64]


class HeldBlocks(NamedTuple):
    """Which blocks of one sequence a rank holds, in order of position."""

    local: IntArray
    """[B]: where they lie in the rank's own cache."""
    places: IntArray
    """[B]: which of the sequence's blocks they are."""

    def positions(self, first: int, last: int, block_size: int) -> tuple[IntArray, IntArray]:
        """The sequence's positions from `first` up to `last` that lie in these blocks, ascending.

        Returns:
            [L] positions and [L] slots of the rank's own cache.
        """
        offsets = np.arange(block_size)
        positions = (self.places[:, None] * block_size + offsets).reshape(-1)
        slots = (self.local[:, None] * block_size + offsets).reshape(-1)
        kept = (positions >= first) & (positions < last)
        return positions[kept], slots[kept]


class BlockShare(NamedTuple):
    """The blocks of one of `size` ranks: those whose id is `rank` modulo `size`.

    A sequence's blocks are taken from wherever the pool has some, so each rank gets about as many
    of them as any other. Ids are the same on all ranks; in a rank's own cache a block lies at
    id // size. Block 0, the null block, is held by nobody.
    """

    rank: int
    size: int

    def holds(self, block: int) -> bool:
        """Whether a block is this rank's."""
        return block != 0 and block % self.size == self.rank

    def owner(self, block: int) -> int:
        """The rank that holds a block."""
        return block % self.size

    def local(self, block: int) -> int:
        """Where a block lies in its owner's cache."""
        return block // self.size

    def held_blocks(self, table: Sequence[int] | IntArray) -> HeldBlocks:
        """This rank's blocks of a sequence, whose blocks in order of position are `table`."""
        ids = np.asarray(table, dtype=np.int64)
        (places,) = np.nonzero((ids != 0) & (ids % self.size == self.rank))
        return HeldBlocks(ids[places] // self.size, places)

    def held_slots(self, slots: torch.Tensor, block_size: int) -> torch.Tensor:
        """Where in this rank's own cache the rows of a batch go.

        Args:
            slots: int64 [N]: block id * block_size + offset of each row.
            block_size: Tokens of one block.

        Returns:
            int64 [N]; -1 for rows that go into other ranks' blocks.
        """
        blocks = slots // block_size
        own = blocks // self.size * block_size + slots % block_size
        return torch.where(blocks % self.size == self.rank, own, -1)
