"""What the tiers below the device's cache have done since an engine started."""

from dataclasses import dataclass


@dataclass(slots=True)
class TierStats:
    """Counters that only grow. Blocks that several ranks hold parts of count once."""

    host_hit_tokens: int = 0
    """Prompt tokens, of requests taken up, that were found in host memory."""
    redis_hit_tokens: int = 0
    """And in Redis."""
    blocks_saved: int = 0
    """From the device's cache to host memory."""
    blocks_loaded: int = 0
    """From host memory to the device's cache."""
    blocks_dropped: int = 0
    """Not saved: all slots were being read or written."""
    blocks_fetched: int = 0
    """From Redis to host memory."""
    bytes_fetched: int = 0
    blocks_written: int = 0
    """To Redis."""
    bytes_written: int = 0
    writes_dropped: int = 0
    """Blocks not offered to Redis: the queue was full, or Redis away."""
    writes_failed: int = 0
    """Blocks offered, but not written: Redis failed, or had no room."""
    fetches: int = 0
    """Requests for whose sake Redis was asked."""
    fetches_failed: int = 0
    """Ended by an error of Redis."""
    fetches_timed_out: int = 0
    """Given up by the requests that waited."""
    values_corrupt: int = 0
    """Values in Redis that were not what was written."""
