"""Which KV blocks a sequence rank holds."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

IntArray = npt.NDArray[np.int64]


class HeldPositions(NamedTuple):
    """Positions of one sequence whose keys and values a rank holds, in ascending order."""

    positions: IntArray
    """[L]"""
    slots: IntArray
    """[L]: where in the rank's own cache they are."""


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

    def held_positions(
        self, table: list[int], first: int, last: int, block_size: int
    ) -> HeldPositions:
        """The positions from `first` up to `last` of a sequence that lie in this rank's blocks.

        `table` are the ids of the sequence's blocks in order of position.
        """
        begin, end = first // block_size, -(-last // block_size)
        ids = np.array(table[begin:end], dtype=np.int64)
        (held,) = np.nonzero((ids != 0) & (ids % self.size == self.rank))
        offsets = np.arange(block_size)
        positions = ((held + begin)[:, None] * block_size + offsets).reshape(-1)
        slots = ((ids[held] // self.size)[:, None] * block_size + offsets).reshape(-1)
        kept = (positions >= first) & (positions < last)
        return HeldPositions(positions[kept], slots[kept])

    def held_rows(self, slots: torch.Tensor, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of some rows go into this rank's blocks, and where in its own cache.

        Args:
            slots: int64 [N]: block id * block_size + offset of each row.
            block_size: Tokens of one block.

        Returns:
            int64 [M] indices of rows and int64 [M] slots.
        """
        blocks = slots // block_size
        (rows,) = ((blocks % self.size == self.rank) & (blocks != 0)).nonzero(as_tuple=True)
        return rows, blocks[rows] // self.size * block_size + slots[rows] % block_size
