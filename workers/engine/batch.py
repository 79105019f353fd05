"""The plan of one step."""

from dataclasses import dataclass, field
from typing import NamedTuple

from workers.engine.kv_blocks import CopyPair
from workers.engine.sequence import Sequence


class Chunk(NamedTuple):
    """Tokens ``start .. start + length`` of a sequence, to be computed in this step."""

    sequence: Sequence
    start: int
    length: int

    @property
    def end(self) -> int:
        """The position after the last one computed."""
        return self.start + self.length

    @property
    def samples(self) -> bool:
        """Whether it reaches the sequence's end, so that a token is sampled."""
        return self.end == len(self.sequence.token_ids)


@dataclass(slots=True)
class Batch:
    """What one step computes."""

    chunks: list[Chunk] = field(default_factory=list)
    copies: list[CopyPair] = field(default_factory=list)
    """Blocks to copy before anything is computed."""

    num_tokens: int = 0
    """Rows that go through the model."""

    def add(self, chunk: Chunk, copy: CopyPair | None) -> None:
        """Plan a chunk, after the copy that it needs."""
        self.chunks.append(chunk)
        self.num_tokens += chunk.length
        if copy is not None:
            self.copies.append(copy)

    def drop(self, sequence: Sequence) -> None:
        """Take a sequence that is about to lose its blocks out of the plan."""
        self.chunks = [chunk for chunk in self.chunks if chunk.sequence is not sequence]
        self.copies = [copy for copy in self.copies if copy[1] not in sequence.block_table]
        self.num_tokens = sum(chunk.length for chunk in self.chunks)
