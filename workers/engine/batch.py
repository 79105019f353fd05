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
    incarnation: int
    """The sequence's, when this was planned."""
    samples: bool
    """Whether it reaches the sequence's end, so that a token is sampled; never for embeddings."""
    num_scored: int
    """How many of its first tokens are followed by one whose log-probability is asked for."""

    @classmethod
    def next_of(cls, sequence: Sequence, length: int) -> "Chunk":
        """The next tokens of a sequence to be handed to a step."""
        start = sequence.num_scheduled
        is_last = start + length == len(sequence.token_ids)
        samples = is_last and not sequence.group.request.embed
        scored = _num_scored(sequence, start, length) if start < sequence.num_prompt else 0
        return cls(sequence, start, length, sequence.incarnation, samples, scored)

    @property
    def end(self) -> int:
        """The position after the last one computed."""
        return self.start + self.length

    @property
    def is_stale(self) -> bool:
        """Whether the sequence has lost its blocks since, so that nobody wants the result."""
        return self.incarnation != self.sequence.incarnation


@dataclass(slots=True)
class Batch:
    """What one step computes."""

    chunks: list[Chunk] = field(default_factory=list)
    copies: list[CopyPair] = field(default_factory=list)
    """Blocks to copy before anything is computed."""
    cleared: list[int] = field(default_factory=list)
    """Blocks to clear before that."""
    saves: list[tuple[int, int]] = field(default_factory=list)
    """(block, slot) to copy to host memory before all that."""
    loads: list[tuple[int, int]] = field(default_factory=list)
    """(slot, block) to copy back, after `copies`."""

    num_tokens: int = 0
    """Rows that go through the model."""
    num_prompt_tokens: int = 0
    """Those of chunks that are longer than one token."""

    def add(self, chunk: Chunk, copy: CopyPair | None) -> None:
        """Plan a chunk, after the copy that it needs."""
        self.chunks.append(chunk)
        self.num_tokens += chunk.length
        if chunk.length > 1:
            self.num_prompt_tokens += chunk.length
        if copy is not None:
            self.copies.append(copy)

    def drop(self, sequence: Sequence) -> None:
        """Take a sequence that is about to lose its blocks out of the plan."""
        self.chunks = [chunk for chunk in self.chunks if chunk.sequence is not sequence]
        self.copies = [copy for copy in self.copies if copy[1] not in sequence.block_table]
        self.num_tokens = sum(chunk.length for chunk in self.chunks)
        self.num_prompt_tokens = sum(c.length for c in self.chunks if c.length > 1)


def _num_scored(sequence: Sequence, start: int, length: int) -> int:
    wants = sequence.group.request.params.prompt_top_logprobs is not None
    if not wants or sequence.num_output:
        return 0
    return min(length, sequence.num_prompt - 1 - start)
