"""The paged store of keys and values."""

import math
import mmap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Protocol

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


class LayerCache(NamedTuple):
    """The keys and values of one layer.

    In int8, each head of each token has a scale: what is stored times it is what was meant.
    """

    keys: torch.Tensor
    """[num_blocks, block_size, num_kv_heads, head_dim]"""
    values: torch.Tensor
    """Like keys."""
    key_scales: torch.Tensor | None = None
    """float32 [num_blocks, block_size, num_kv_heads] if keys are int8, else None."""
    value_scales: torch.Tensor | None = None
    """Like key_scales."""


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of all layers, in blocks that sequences own by block id.

    Block 0 is the null block: no sequence owns it and nothing is ever written to it.
    """

    layers: list[LayerCache]

    @classmethod
    def allocate(
        cls,
        config: CacheShape,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> "KVCache":
        """A cache of zeros; the operating system commits its pages as they are first written.

        `dtype` is that of the stored elements: the model's, or int8.
        """
        scales_shape = (num_blocks, block_size, config.num_kv_heads)
        shape = (*scales_shape, config.head_dim)

        def store() -> torch.Tensor:
            return lazy_zeros(shape, dtype, device)

        def scales() -> torch.Tensor | None:
            is_scaled = dtype == torch.int8
            return lazy_zeros(scales_shape, torch.float32, device) if is_scaled else None

        layers = [
            LayerCache(store(), store(), scales(), scales()) for _ in range(config.num_layers)
        ]
        return cls(layers)

    @staticmethod
    def bytes_per_block(config: CacheShape, block_size: int, dtype: torch.dtype) -> int:
        """Bytes that one block takes over all layers, keys, values and scales together."""
        head_bytes = config.head_dim * dtype.itemsize
        if dtype == torch.int8:
            head_bytes += torch.float32.itemsize
        return 2 * config.num_layers * block_size * config.num_kv_heads * head_bytes

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, of all stores together."""
        return sum(store.stride(0) * store.itemsize for store in self.stores())

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        """Copy each (source, destination) block in all layers; no destination is also a source."""
        if not pairs:
            return
        sources, destinations = torch.tensor(pairs, device=self.layers[0].keys.device).unbind(1)
        for store in self.stores():
            store[destinations] = store[sources]

    def zero_blocks(self, block_ids: list[int]) -> None:
        """Clear blocks whose owner may have left NaN or infinity in them, before they are reused.

        Kernels may mask positions past a sequence's end by a probability of zero, and zero times
        NaN is NaN: such a value would reach the block's next owner.
        """
        if not block_ids:
            return
        indices = torch.tensor(block_ids, device=self.layers[0].keys.device)
        for store in self.stores():
            store.index_fill_(0, indices, 0)

    def read_blocks(self, block_ids: list[int]) -> torch.Tensor:
        """All bytes of some blocks as bfloat16 [B, W], a copy: of one store after the other.

        In a type that groups exchange: heads have an even number of elements, so a block of int8
        has an even number of bytes.
        """
        words = [_as_words(store) for store in self.stores()]
        indices = torch.tensor(block_ids, dtype=torch.int64, device=words[0].device)
        return torch.cat([store[indices] for store in words], dim=1)

    def write_blocks(self, block_ids: list[int], content: torch.Tensor) -> None:
        """The reverse: set all bytes of some blocks to bfloat16 [B, W] on the cache's device."""
        words = [_as_words(store) for store in self.stores()]
        indices = torch.tensor(block_ids, dtype=torch.int64, device=words[0].device)
        parts = content.split_with_sizes([store.shape[1] for store in words], dim=1)
        for store, part in zip(words, parts, strict=True):
            store[indices] = part

    def stores(self) -> Iterator[torch.Tensor]:
        """All tensors of all layers, [num_blocks, block_size, num_kv_heads, ...] each."""
        for layer in self.layers:
            yield from (store for store in layer if store is not None)


def _as_words(store: torch.Tensor) -> torch.Tensor:
    return store.flatten(1).view(torch.bfloat16)


def lazy_zeros(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str
) -> torch.Tensor:
    """Zeros straight from the operating system; torch.zeros would write, and so commit, all."""
    # Private, unlike the default: shared memory comes in small pages only.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=flags)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)  # attention reads blocks all over the store
    return torch.frombuffer(memory, dtype=dtype).view(shape).to(device)
