"""How busy an engine is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """A snapshot of an engine's queues, cache and learned rates."""

    running_sequences: int
    waiting_requests: int
    queued_prefill_tokens: int
    """Prompt tokens not yet computed, of running and waiting requests."""
    free_blocks: int
    """Blocks that a new request could take, cached ones included."""
    total_blocks: int
    prefill_tokens_per_s: float
    """Learned; 0 until known."""
    decode_tokens_per_s: float
    """Learned; 0 until known."""
    max_running_sequences: int
    """Sequences that may run at a time."""
    fetch_tokens_per_s: float = 0.0
    """From host memory to the device; 0 until known."""
