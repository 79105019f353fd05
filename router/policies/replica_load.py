"""What a replica has to do, in the units that policies compare."""

from typing import NamedTuple

_FETCH_SHARE = 0.1
"""Of what computing a token takes, what fetching it does where a replica has not fetched any yet:
more than it is likely to be."""


class ReplicaLoad(NamedTuple):
    """A replica's work at one moment: by its own word, and what was sent there since.

    Costs are linear in the tokens that a request still has to compute there, so that a choice
    among many replicas is one multiplication for each.
    """

    pending_sequences: int = 0
    """Running, waiting, or on their way there."""
    queued_prefill_tokens: int = 0
    """Prompt tokens not yet computed."""
    prefill_tokens_per_s: float = 0.0
    """What is believed of it; 0 where no replica's rate is known."""
    typical_tokens_per_s: float = 0.0
    """What is believed of a replica of this model; 0 with the former."""
    decode_ms: float = 0.0
    """By which its running decodes delay a first answer."""
    base_ms: float = 0.0
    """Cost of a request that is cached there whole; 0 without a rate."""
    token_ms: float = 0.0
    """Cost of each token that is not; 0 without a rate."""
    fetch_token_ms: float = 0.0
    """Cost of each token that is in its host memory only; 0 without a rate."""

    @classmethod
    def of(
        cls,
        *,
        pending_sequences: int = 0,
        queued_prefill_tokens: int = 0,
        prefill_tokens_per_s: float = 0.0,
        typical_tokens_per_s: float = 0.0,
        place_ms: float = 0.0,
        decode_ms: float = 0.0,
        fetch_tokens_per_s: float = 0.0,
    ) -> "ReplicaLoad":
        """The load with its costs; `place_ms` is how long one more sequence waits for a place,
        `fetch_tokens_per_s` is 0 while unknown."""
        base_ms = token_ms = fetch_token_ms = 0.0
        if prefill_tokens_per_s:
            ms_per_token = 1e3 / prefill_tokens_per_s
            base_ms = queued_prefill_tokens * ms_per_token + place_ms + decode_ms
            token_ms = ms_per_token + 1e3 / typical_tokens_per_s
            fetch_token_ms = _FETCH_SHARE * ms_per_token
            if fetch_tokens_per_s:
                fetch_token_ms = 1e3 / fetch_tokens_per_s
        return cls(
            pending_sequences,
            queued_prefill_tokens,
            prefill_tokens_per_s,
            typical_tokens_per_s,
            decode_ms,
            base_ms,
            token_ms,
            fetch_token_ms,
        )


class CostParts(NamedTuple):
    """What a request would cost at a replica, in milliseconds."""

    queue_ms: float
    """Until the tokens before it are computed and it has a place."""
    prefill_ms: float
    """To compute its own."""
    fetch_ms: float
    """To fetch blocks from its host memory."""
    decode_ms: float
    """Its first tokens' share in the steps of running decodes."""
    work_ms: float
    """What computing its tokens takes from others: that time on a typical replica."""


def cost_parts(load: ReplicaLoad, uncached_tokens: int, fetched_tokens: int) -> CostParts:
    """The parts of ``load.base_ms + load.token_ms * uncached_tokens + load.fetch_token_ms *
    fetched_tokens``; all 0 without a rate."""
    if not load.prefill_tokens_per_s:
        return CostParts(0.0, 0.0, 0.0, 0.0, 0.0)
    return CostParts(
        load.base_ms - load.decode_ms,
        1e3 * uncached_tokens / load.prefill_tokens_per_s,
        load.fetch_token_ms * fetched_tokens,
        load.decode_ms,
        1e3 * uncached_tokens / load.typical_tokens_per_s,
    )
