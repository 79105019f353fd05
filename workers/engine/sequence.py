"""One sample of one request on its way through the engine."""

from array import array
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from cluster.prefix.block_hash import BlockHasher
from workers.engine.mean_pool import MeanPool
from workers.engine.request import Request, Started, TokenLogprob


class Sequence:
    """Tokens, and how far the model has come with them.

    Four lengths rule everything: ``num_prompt <= len(token_ids)`` and
    ``num_computed <= num_scheduled <= len(token_ids)``. A step computes tokens
    ``num_scheduled .. num_scheduled + n``; when it reaches the end, it samples one more. Between
    steps all that is scheduled is computed too, unless several are in flight.
    """

    __slots__ = (
        "__weakref__",
        "block_hashes",
        "block_table",
        "group",
        "hasher",
        "incarnation",
        "index",
        "num_computed",
        "num_prompt",
        "num_registered",
        "num_scheduled",
        "num_window_freed",
        "token_ids",
    )

    def __init__(self, group: "RequestGroup", index: int) -> None:
        self.group = group
        self.index = index
        self.token_ids = list(group.request.prompt_token_ids)
        self.num_prompt = len(self.token_ids) - group.request.num_generated
        """Tokens that the client sent."""
        self.num_computed = 0
        self.num_scheduled = 0
        """Tokens handed to steps, whether these are done or not."""
        self.incarnation = 0
        """How often it has lost its blocks. What steps bring forth for an earlier one is void."""
        self.block_table: BlockTable = array("q")
        self.hasher = BlockHasher(group.root_hash)
        """Has come as far as `block_hashes`."""
        self.block_hashes: list[bytes] = []
        self.num_registered = 0
        """Blocks of the table that have been offered to the prefix cache."""
        self.num_window_freed = 0
        """Blocks at the table's start that the sliding window has left and that were given back."""

    @property
    def num_output(self) -> int:
        """Tokens that were sampled, here or before the request came here."""
        return len(self.token_ids) - self.num_prompt

    @property
    def num_uncomputed(self) -> int:
        """Tokens whose KV is not in the cache; 1 while decoding."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_unscheduled(self) -> int:
        """Tokens that are still to be handed to a step; none while the next one is sampled."""
        return len(self.token_ids) - self.num_scheduled

    @property
    def output_token_ids(self) -> list[int]:
        """The tokens that were sampled."""
        return self.token_ids[self.num_prompt :]

    def append(self, token_id: int) -> None:
        """Add a sampled token."""
        self.token_ids.append(token_id)


class LoadedTokens(NamedTuple):
    """Tokens whose keys and values came from below the device's cache."""

    host: int = 0
    """From host memory, where this engine had saved them."""
    redis: int = 0
    """From Redis, by way of host memory."""


BlockTable: TypeAlias = "array[int]"
"""Block ids in order of position, 64 bits each, as plans have them."""

_YIELD_S = 5.0
"""By how much later others may come and still go before a request that yields."""

Target = tuple[Sequence, int]
"""(sequence, index of the sample that its next token is for)"""


@dataclass(slots=True, eq=False)
class RequestGroup:
    """A request and the samples that come of it."""

    request: Request
    arrival: int
    """Order of arrival."""
    arrived_at: float
    """On time.monotonic()."""
    max_output: int
    """Tokens that each sample may have at the most."""
    root_hash: bytes
    """What the hashes of all blocks begin with."""
    order: tuple[int, float, int] = field(init=False)
    """Those with less go first."""
    live: list[Sequence] = field(default_factory=list)
    """Samples that have not ended; before the prompt is computed, the first one alone."""
    is_forked: bool = False
    """Whether the samples beyond the first have been made."""
    cached_prompt_tokens: int = 0
    """Prompt tokens that did not have to be computed, whichever tier they were found in."""
    loaded_tokens: LoadedTokens = field(default_factory=LoadedTokens)
    """Those of them that were not in the device's cache."""
    is_started: bool = False
    started: Started | None = None
    """Until an output has told it."""
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    mean_pool: MeanPool = field(default_factory=MeanPool)
    """What an embedding is made of, if that is what is wanted."""

    def __post_init__(self) -> None:
        due = self.arrived_at + (_YIELD_S if self.request.yields else 0.0)
        self.order = (-self.request.priority, due, self.arrival)
