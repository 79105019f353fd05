"""What policies may know of a request."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from cluster.model_card import ModelCard
from cluster.prefix.block_hash import BlockHashes, root_hash

_root_hash = lru_cache(maxsize=1024)(root_hash)


@dataclass(frozen=True, kw_only=True, eq=False)
class RouteRequest:
    """A request on its way to a replica; one object for all choices made for the same tokens."""

    request_id: str
    model: ModelCard
    token_ids: Sequence[int]
    """Of the prompt."""
    n: int = 1
    """Samples wanted of it."""
    session_id: str = ""
    """Requests of one session belong together; empty if the client names none."""
    adapter: str = ""
    """Name of the adapter that it needs; empty for the bare model."""
    cache_salt: bytes = b""
    """Mixed into the block hashes, as in the engine."""
    computes_all: bool = False
    """Whether it computes its prompt also where that is cached; what it computes is cached, too."""

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens to be computed where nothing is cached."""
        return len(self.token_ids)

    @cached_property
    def block_hashes(self) -> BlockHashes:
        """Names of the prompt's full blocks, in order; each computed when first asked for."""
        card = self.model
        root = _root_hash(
            card.fingerprint, card.block_size, adapter=self.adapter, salt=self.cache_salt
        )
        return BlockHashes(root, self.token_ids, card.block_size)
