"""What the KV cache is made of: how many blocks, of which type."""

import torch

from cluster.settings import EngineSettings
from workers.engine.memory import free_bytes
from workers.layers.kv_cache import KVCache
from workers.models.causal_lm import CausalLM


def cache_blocks(model: CausalLM, settings: EngineSettings, max_model_len: int) -> int:
    """Blocks of this rank's cache, one of them for the null block: what fits, but no more than can
    be used. As many blocks are all its sequence ranks' together, times their number.

    Raises ValueError if there is no room for a single one.
    """
    dtype = cache_dtype(model, settings)
    block_bytes = KVCache.bytes_per_block(model.shape, settings.block_size, dtype)
    budget = settings.kv_cache_bytes or free_bytes(model.device, settings.cpu_memory_share)
    if budget < block_bytes:
        raise ValueError(
            f"engine.kv_cache_bytes: got {budget}, expected at least one block's {block_bytes}"
        )
    usable = settings.max_num_seqs * -(-max_model_len // settings.block_size)
    return 1 + min(budget // block_bytes, -(-usable // settings.parallel.sequence))


def cache_dtype(model: CausalLM, settings: EngineSettings) -> torch.dtype:
    """What keys and values are stored as."""
    return torch.int8 if settings.kv_cache_dtype == "int8" else model.dtype
