"""How one model is divided among ranks."""

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True)
class Place:
    """Where one rank stands in a layout."""

    rank: int
    stage: int
    """Pipeline stage, the one that embeds tokens being 0."""
    sequence: int
    """Which part of the batch's rows, and of the KV blocks, it holds."""
    expert: int
    """Which part of the experts."""
    tensor: int
    """Which part of each expert."""


@dataclass(frozen=True, slots=True)
class ParallelLayout:
    """Sizes of the four ways to divide a model; their product is the number of ranks.

    Pipeline stages hold consecutive layers. Within a stage, sequence ranks hold the same weights
    and different rows. Expert and tensor ranks together divide attention, dense feed-forward,
    embedding and head (Megatron-LM, Shoeybi et al., 2019); experts are dealt out to the expert
    ranks, and each is divided among the tensor ranks.

    Rank 0, which schedules and samples, is of the last stage, where logits come out. From there
    ranks count towards the first stage; tensor ranks are next to each other.
    """

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    sequence: int = 1

    @property
    def world_size(self) -> int:
        """Ranks of a replica."""
        return prod((self.tensor, self.pipeline, self.expert, self.sequence))

    @property
    def stage_size(self) -> int:
        """Ranks of one pipeline stage."""
        return self.world_size // self.pipeline

    @property
    def dense_size(self) -> int:
        """Ranks that divide what is not an expert."""
        return self.expert * self.tensor

    def place(self, rank: int) -> Place:
        """Where a rank stands. Raises ValueError if there is no such rank."""
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank {rank} is not within world size {self.world_size}")
        rest, tensor = divmod(rank, self.tensor)
        rest, expert = divmod(rest, self.expert)
        from_last, sequence = divmod(rest, self.sequence)
        return Place(rank, self.pipeline - 1 - from_last, sequence, expert, tensor)

    def rank(self, stage: int, sequence: int, expert: int, tensor: int) -> int:
        """The rank at a place; the inverse of `place`."""
        from_last = self.pipeline - 1 - stage
        return (
            (from_last * self.sequence + sequence) * self.expert + expert
        ) * self.tensor + tensor

    def dense_group(self, place: Place) -> tuple[int, ...]:
        """The ranks that divide attention and dense layers with this one, in order."""
        return tuple(
            self.rank(place.stage, place.sequence, expert, tensor)
            for expert in range(self.expert)
            for tensor in range(self.tensor)
        )

    def expert_group(self, place: Place) -> tuple[int, ...]:
        """The ranks that hold the same part of other experts, in order."""
        return tuple(
            self.rank(place.stage, place.sequence, expert, place.tensor)
            for expert in range(self.expert)
        )

    def sequence_group(self, place: Place) -> tuple[int, ...]:
        """The ranks that hold the same weights, in order."""
        return tuple(
            self.rank(place.stage, sequence, place.expert, place.tensor)
            for sequence in range(self.sequence)
        )

    def neighbour(self, place: Place, offset: int) -> int | None:
        """The rank at the same place `offset` stages further on; None where the pipeline ends."""
        stage = place.stage + offset
        if not 0 <= stage < self.pipeline:
            return None
        return self.rank(stage, place.sequence, place.expert, place.tensor)
