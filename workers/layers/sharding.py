"""Which part of each weight a tensor-parallel rank holds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank of a tensor-parallel group.

    Column-parallel weights are cut along their output features, row-parallel ones along their
    inputs, so that a pair of them needs one all-reduce (Megatron-LM, Shoeybi et al., 2019).
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not within world size {self.world_size}")

    def part(self, size: int) -> slice:
        """This rank's equal part of `size` rows or columns; raises ValueError if uneven."""
        length = self.count(size)
        return slice(self.rank * length, (self.rank + 1) * length)

    def count(self, size: int) -> int:
        """How many of `size` this rank holds; raises ValueError if uneven."""
        if size % self.world_size:
            raise ValueError(f"{size} does not divide evenly among {self.world_size} ranks")
        return size // self.world_size

    def ragged_part(self, size: int) -> slice:
        """This rank's part of `size` where the last ranks may hold less than the others."""
        length = -(-size // self.world_size)
        return slice(min(self.rank * length, size), min((self.rank + 1) * length, size))

    def kv_heads(self, num_kv_heads: int) -> slice:
        """The key/value heads that this rank's equal part of the query heads attends to.

        Where ranks are more than heads, several hold the same head. Raises ValueError if neither
        number divides the other.
        """
        if self.world_size <= num_kv_heads or self.world_size % num_kv_heads:
            return self.part(num_kv_heads)
        head = self.rank * num_kv_heads // self.world_size
        return slice(head, head + 1)
