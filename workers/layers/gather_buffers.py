"""Where keys and values lie side by side while a kernel reads them."""

from typing import NamedTuple

import torch

from workers.kernels.paged_cache import dequantize_heads, gather_blocks
from workers.layers.kv_cache import LayerCache


class Gathered(NamedTuple):
    """The tokens of some blocks, [num_tokens, num_kv_heads, head_dim] each."""

    keys: torch.Tensor
    values: torch.Tensor


class GatherBuffers:
    """One buffer for keys and one for values, reused by all layers and steps over one cache.

    What `gather` returns is overwritten by the next call.
    """

    def __init__(self) -> None:
        self._keys = torch.empty(0, 0, 0, 0)
        self._values = torch.empty(0, 0, 0, 0)

    def gather(self, cache: LayerCache, block_ids: torch.Tensor, dtype: torch.dtype) -> Gathered:
        """Copy blocks int64 [N] out of a cache, in dtype."""
        num_blocks = block_ids.shape[0]
        if self._keys.shape[0] < num_blocks:
            self._keys = cache.keys.new_empty(num_blocks, *cache.keys.shape[1:])
            self._values = torch.empty_like(self._keys)
        keys = gather_blocks(cache.keys, block_ids, self._keys)
        values = gather_blocks(cache.values, block_ids, self._values)
        if cache.key_scales is None or cache.value_scales is None:
            return Gathered(keys, values)
        return Gathered(
            dequantize_heads(keys, cache.key_scales[block_ids].flatten(0, 1), dtype),
            dequantize_heads(values, cache.value_scales[block_ids].flatten(0, 1), dtype),
        )
