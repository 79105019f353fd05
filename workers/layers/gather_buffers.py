"""Where keys and values lie side by side while a kernel reads them."""

from typing import NamedTuple

import torch

from workers.kernels.paged_cache import gather_blocks


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

    def gather(
        self, key_cache: torch.Tensor, value_cache: torch.Tensor, block_ids: torch.Tensor
    ) -> Gathered:
        """Copy blocks int64 [N] out of caches [num_blocks, block_size, num_kv_heads, head_dim]."""
        num_blocks = block_ids.shape[0]
        if self._keys.shape[0] < num_blocks:
            self._keys = key_cache.new_empty(num_blocks, *key_cache.shape[1:])
            self._values = torch.empty_like(self._keys)
        return Gathered(
            gather_blocks(key_cache, block_ids, self._keys),
            gather_blocks(value_cache, block_ids, self._values),
        )
