"""One request at a simulated engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class SimulatedSequence:
    """A prompt and an answer of known length, of which only the blocks' names matter."""

    num_prompt_tokens: int
    output_tokens: int
    hashes: Sequence[bytes]
    """Of all full blocks of prompt and answer together, in order."""
    on_first_token: Callable[[], None]
    on_end: Callable[[], None]
    cached_tokens: int = 0
    """Prompt tokens that were found in the cache when it started."""
    num_computed: int = 0
    """Of the prompt."""
    num_generated: int = 0
    num_registered: int = 0
    """Blocks that can be found by their hashes."""
    blocks: list[int] = field(default_factory=list)

    @property
    def num_uncomputed(self) -> int:
        """Prompt tokens still to be computed."""
        return self.num_prompt_tokens - self.num_computed

    def usable_hashes(self, block_size: int) -> Sequence[bytes]:
        """Of the blocks that it can take from others: at least one token is always computed."""
        return self.hashes[: (self.num_prompt_tokens - 1) // block_size]
