"""The paged store of keys and values."""

import math
from dataclasses import dataclass
from mmap import mmap
from typing import Protocol

import torch


class CacheShape(Protocol):
    """What a model's configuration must say so that its cache can be laid out."""

    @property
    def num_layers(self) -> int:
        """Decoder layers, each with its own keys and values."""

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads of this rank."""

    @property
    def head_dim(self) -> int:
        """Elements of one head."""


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of all layers, in blocks that sequences own by block id.

    Block 0 is the null block: no sequence owns it and nothing is ever written to it.
    """

    keys: list[torch.Tensor]
    """Of each layer: [num_blocks, block_size, num_kv_heads, head_dim]."""
    values: list[torch.Tensor]
    """Of each layer, shaped like its keys."""

    @classmethod
    def allocate(
        cls,
        config: CacheShape,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> "KVCache":
        """A cache of zeros; the operating system commits its pages as they are first written."""
        shape = (num_blocks, block_size, config.num_kv_heads, config.head_dim)

        def layers() -> list[torch.Tensor]:
            return [
                torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)
            ]

        return cls(keys=layers(), values=layers())

    @staticmethod
    def bytes_per_block(config: CacheShape, block_size: int, dtype: torch.dtype) -> int:
        """Bytes that one block takes over all layers, keys and values together."""
        elements = block_size * config.num_kv_heads * config.head_dim
        return 2 * config.num_layers * elements * dtype.itemsize

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        """Copy each (source, destination) block in all layers; no destination is also a source."""
        if not pairs:
            return
        sources, destinations = torch.tensor(pairs, device=self.keys[0].device).unbind(1)
        for store in (*self.keys, *self.values):
            store[destinations] = store[sources]

    def zero_blocks(self, block_ids: list[int]) -> None:
        """Clear blocks whose owner may have left NaN or infinity in them, before they are reused.

        Kernels mask positions past a sequence's end by a probability of zero, and zero times
        NaN is NaN: such a value would reach the block's next owner.
        """
        if not block_ids:
            return
        indices = torch.tensor(block_ids, device=self.keys[0].device)
        for store in (*self.keys, *self.values):
            store.index_fill_(0, indices, 0)


def _lazy_zeros(
    shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device | str
) -> torch.Tensor:
    """Zeros straight from the operating system; torch.zeros would write, and so commit, all."""
    memory = mmap(-1, math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(shape).to(device)
