"""What the KV cache is made of: how many blocks, of which type."""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from cluster.settings import EngineSettings
from workers.engine.memory import free_bytes
from workers.layers.kv_cache import KVCache
from workers.models.causal_lm import CausalLM


class CacheSize(NamedTuple):
    """What a rank has room for. Sequence ranks have so much each."""

    num_blocks: int
    """In its cache, one of them the null block."""
    num_slots: int
    """Blocks in host memory."""

    @classmethod
    def least(cls, sizes: "Iterable[CacheSize]") -> "CacheSize":
        """What all have room for."""
        return cls(*map(min, zip(*sizes, strict=True)))


def cache_size(model: CausalLM, settings: EngineSettings, max_model_len: int) -> CacheSize:
    """Of this rank: what fits, but no more blocks than can be used.

    Raises ValueError if there is no room for a single block where there should be some.
    """
    dtype = cache_dtype(model, settings)
    block_bytes = KVCache.bytes_per_block(model.shape, settings.block_size, dtype)
    budget = settings.kv_cache_bytes or free_bytes(model.device, settings.cpu_memory_share)
    if budget < block_bytes:
        raise ValueError(
            f"engine.kv_cache_bytes: got {budget}, expected at least one block's {block_bytes}"
        )
    usable = settings.max_num_seqs * -(-max_model_len // settings.block_size)
    num_blocks = 1 + min(budget // block_bytes, -(-usable // settings.parallel.sequence))
    host_bytes = settings.host_tier_bytes
    if 0 < host_bytes < block_bytes:
        raise ValueError(
            f"engine.host_cache_bytes: got {host_bytes}, expected 0 or at least one "
            f"block's {block_bytes}"
        )
    num_slots = host_bytes // block_bytes if settings.enable_prefix_caching else 0
    return CacheSize(num_blocks, num_slots)


def cache_dtype(model: CausalLM, settings: EngineSettings) -> torch.dtype:
    """What keys and values are stored as."""
    return torch.int8 if settings.kv_cache_dtype == "int8" else model.dtype
