"""A rank's blocks in host memory."""

from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch

from workers.layers.block_exchange import exchange_blocks
from workers.layers.block_share import BlockShare
from workers.layers.kv_cache import KVCache, lazy_zeros
from workers.parallel.group import Group

Bytes = npt.NDArray[np.uint8]


class HostStore:
    """Slots for blocks of a cache, each with all bytes of one block in a row: keys and values of
    one layer after the other, in whatever type they are stored, scales included.

    Slots are divided among sequence ranks as blocks are, see BlockShare.
    """

    def __init__(self, cache: KVCache, num_slots: int, group: Group) -> None:
        """`num_slots` are this rank's; the operating system commits their memory as it is used.

        `group` is of the ranks that divide blocks among them.
        """
        self._cache = cache
        self._group = group
        self._share = BlockShare(group.rank, group.size)
        stores = list(cache.stores())
        self._device = stores[0].device
        self._is_near = self._device.type == "cpu" and group.size == 1
        self._slots = lazy_zeros((num_slots, cache.block_bytes), torch.uint8, "cpu")
        self._rows: Bytes = self._slots.numpy()
        # Without torch, which takes longer for each of the many parts of a block than copying it.
        self._stores = [_bytes_of(store) for store in stores] if self._is_near else []
        self.load_seconds = 0.0
        """Spent in `load` so far."""

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot."""
        return len(self._rows[0])

    def holds(self, slot: int) -> bool:
        """Whether a slot is this rank's."""
        return self._share.owner(slot) == self._share.rank

    def row(self, slot: int) -> Bytes:
        """The bytes of a slot that this rank holds, uint8 [slot_bytes]; on any thread."""
        row: Bytes = self._rows[self._share.local(slot)]
        return row

    def save(self, pairs: list[tuple[int, int]]) -> None:
        """Copy (block, slot) from the cache. All ranks of the group call it with the same."""
        if not self._is_near:
            exchange_blocks(pairs, self._group, self._cache.read_blocks, self._write)
            return
        for block, slot in pairs:
            row, first = self._rows[slot], 0
            for store in self._stores:
                end = first + store.shape[1]
                row[first:end] = store[block]
                first = end

    def load(self, pairs: list[tuple[int, int]]) -> None:
        """Copy (slot, block) to the cache. All ranks of the group call it with the same."""
        if not pairs:
            return
        began = perf_counter()
        if self._is_near:
            self._load_near(pairs)
        else:
            exchange_blocks(pairs, self._group, self._read, self._cache.write_blocks)
        self.load_seconds += perf_counter() - began

    def _load_near(self, pairs: list[tuple[int, int]]) -> None:
        for slot, block in pairs:
            row, first = self._rows[slot], 0
            for store in self._stores:
                end = first + store.shape[1]
                store[block] = row[first:end]
                first = end

    def _read(self, slots: list[int]) -> torch.Tensor:
        return self._slots[slots].view(torch.bfloat16).to(self._device)

    def _write(self, slots: list[int], content: torch.Tensor) -> None:
        self._slots[slots] = content.cpu().view(torch.uint8)


def _bytes_of(store: torch.Tensor) -> Bytes:
    """A store's blocks, [num_blocks, bytes], the same memory."""
    found: Bytes = store.flatten(1).view(torch.uint8).numpy()
    return found
