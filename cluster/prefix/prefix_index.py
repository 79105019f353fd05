"""Which replica holds which block, for millions of blocks: a hash table in numpy arrays.

A block's hash (128 bits) is kept in one of two buckets of eight places, which its two halves name;
beside it stand a bit for each replica that holds the block, and when the block was last spoken of.
All places of both buckets are looked at at once, for a whole batch of hashes: a place is free again
as soon as nobody holds its block, and chains of probes, which deletions would lengthen, are none.

With 64 replicas a place takes 28 bytes, with 64 more another 8. Two choices fill a table to about
9 places in 10 before some hash finds both of its buckets full (Azar et al., Balanced Allocations,
1994). Then the table doubles; at its largest, the new block takes the place of that one of the
sixteen that was not spoken of for longest.
"""

from struct import Struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.prefix.block_hash import HASH_SIZE_BYTES

_PLACES = 8
"""Of a bucket: its hashes' first halves lie in one cache line."""
_FIRST_BUCKETS = 128
_BATCH = 4096
"""Hashes handled at once; bounds the memory that is needed in passing."""
_FIRST_LOOK = 64
"""Blocks of a prompt looked up first: often none is held, or few are."""
_WORD_BITS = 64
_HALVES = Struct("<QQ")
_BUCKET = Struct(f"{_PLACES}Q")

Words = NDArray[np.uint64]
Positions = NDArray[np.int64]


class _Keys(NamedTuple):
    """Hashes in two halves, each (n,). The first half of a free place is 0; a hash that begins so
    (one in 2**64) is kept as if it began with 1."""

    low: Words
    high: Words

    def rows(self, which: NDArray[np.bool_] | NDArray[np.intp] | slice) -> "_Keys":
        return _Keys(self.low[which], self.high[which])


class PrefixIndex:
    """Blocks by replica. Replicas are slots: small numbers that are used again."""

    def __init__(self, max_blocks: int) -> None:
        """At most `max_blocks`, rounded up to a power of two, are known at a time."""
        if max_blocks < 1:
            raise ValueError(f"max_blocks: got {max_blocks}, expected at least 1")
        self._max_buckets = _power_of_two(-(-max_blocks // _PLACES))
        num_buckets = min(_FIRST_BUCKETS, self._max_buckets)
        self._low = np.zeros((num_buckets, _PLACES), np.uint64)
        self._high = np.zeros((num_buckets, _PLACES), np.uint64)
        self._stamps = np.zeros((num_buckets, _PLACES), np.uint32)
        self._holders = np.zeros((num_buckets * _PLACES, 1), np.uint64)
        self._num_blocks = 0
        self._clock = 1
        self._free_slots: list[int] = []
        self._num_slots = 0

    @property
    def num_blocks(self) -> int:
        """Blocks that some replica holds."""
        return self._num_blocks

    @property
    def nbytes(self) -> int:
        """Memory of the table."""
        arrays = (self._low, self._high, self._stamps, self._holders)
        return sum(array.nbytes for array in arrays)

    def open_slot(self) -> int:
        """A slot for a replica, which holds nothing yet."""
        if self._free_slots:
            return self._free_slots.pop()
        slot = self._num_slots
        self._num_slots += 1
        if self._num_slots > self._holders.shape[1] * _WORD_BITS:
            more = np.zeros((len(self._holders), 1), np.uint64)
            self._holders = np.concatenate((self._holders, more), axis=1)
        return slot

    def copy_slot(self, slot: int) -> int:
        """A slot that holds what another one does."""
        copy = self.open_slot()
        (word, bit), (copy_word, copy_bit) = _bit(slot), _bit(copy)
        holds = (self._holders[:, word] & bit) != 0
        self._holders[holds, copy_word] |= copy_bit
        return copy

    def close_slot(self, slot: int) -> None:
        """Forget what the replica holds; the slot is another one's next."""
        self.clear(slot)
        self._free_slots.append(slot)

    def store(self, slot: int, hashes: bytes) -> None:
        """The replica holds these blocks: hashes of 16 bytes, parents before children."""
        word, bit = _bit(slot)
        keys = _keys(hashes)
        for start in range(0, len(keys.low), _BATCH):
            batch = keys.rows(slice(start, start + _BATCH))
            positions = self._find(batch)
            known = positions >= 0
            self._touch(positions[known])
            if not known.all():
                self._insert(batch.rows(~known))
                positions = self._find(batch)
                # In a full table, the last of a batch may have taken the places of the first.
                positions = positions[positions >= 0]
                self._touch(positions)
            self._holders[positions, word] |= bit

    def remove(self, slot: int, hashes: bytes) -> None:
        """The replica holds these blocks no more; it need not have held them."""
        keys = _keys(hashes)
        for start in range(0, len(keys.low), _BATCH):
            positions = self._find(keys.rows(slice(start, start + _BATCH)))
            self._drop(slot, positions[positions >= 0])

    def clear(self, slot: int) -> None:
        """The replica holds nothing any more."""
        word, bit = _bit(slot)
        self._drop(slot, np.flatnonzero(self._holders[:, word] & bit))

    def depths(self, hashes: bytes) -> dict[int, int]:
        """How many of the first of these blocks each slot holds, of those that hold any.

        To ask after a block counts as speaking of it.
        """
        keys = _keys(hashes)
        holders = self._leading(keys.rows(slice(0, _FIRST_LOOK)))
        if len(holders) == _FIRST_LOOK < len(keys.low):
            more = self._leading(keys.rows(slice(_FIRST_LOOK, None)))
            holders = np.concatenate((holders, more & holders[-1]))
        if not len(holders):
            return {}
        bits = np.unpackbits(
            holders.astype("<u8", copy=False).view(np.uint8), axis=1, bitorder="little"
        )
        depths = bits.sum(axis=0, dtype=np.int64)
        slots = np.flatnonzero(depths)
        return dict(zip(slots.tolist(), depths[slots].tolist(), strict=True))

    @property
    def is_largest(self) -> bool:
        """Whether it has grown as far as it may: then new blocks may displace old ones."""
        return len(self._low) == self._max_buckets

    def holders(self, block: bytes) -> int:
        """The slots that hold a block, as bits; far quicker for one block than for many.

        To ask so does not count as speaking of it.
        """
        low, high = _HALVES.unpack(block)
        low, mask = low or 1, len(self._low) - 1
        for bucket in (low & mask, high & mask):
            lows = _BUCKET.unpack_from(self._low.data, bucket * _BUCKET.size)
            if low in lows:
                highs = _BUCKET.unpack_from(self._high.data, bucket * _BUCKET.size)
                for place, halves in enumerate(zip(lows, highs, strict=True)):
                    if halves == (low, high):
                        words: list[int] = self._holders[bucket * _PLACES + place].tolist()
                        return sum(word << _WORD_BITS * i for i, word in enumerate(words))
        return 0

    def _leading(self, keys: _Keys) -> Words:
        """(m, words): who holds all blocks up to each one, as long as anybody does."""
        positions = self._find(keys)
        if (positions < 0).any():
            positions = positions[: (positions < 0).argmax()]
        holders = np.bitwise_and.accumulate(self._holders[positions], axis=0)
        if len(holders) and not holders[-1].any():
            length = int((~holders.any(axis=1)).argmax())
            holders, positions = holders[:length], positions[:length]
        self._touch(positions)
        return holders

    def _buckets(self, keys: _Keys) -> Positions:
        """(n, 2): the buckets that each hash may be in."""
        mask = np.uint64(len(self._low) - 1)
        return np.stack((keys.low & mask, keys.high & mask), axis=1).view(np.int64)

    def _find(self, keys: _Keys) -> Positions:
        """(n,): each hash's place, -1 where it has none."""
        buckets = self._buckets(keys)
        same = self._low[buckets] == keys.low[:, None, None]
        found = np.flatnonzero(same)
        places = buckets.ravel()[found // _PLACES] * _PLACES + found % _PLACES
        rows = found // (2 * _PLACES)
        right = self._high.ravel()[places] == keys.high[rows]
        positions = np.full(len(keys.low), -1, np.int64)
        positions[rows[right]] = places[right]
        return positions

    def _insert(self, keys: _Keys) -> None:
        """Give places to hashes that have none; the same hash may be there twice.

        Each round places one hash in a bucket, in the emptier one of its two.
        """
        while len(keys.low):
            buckets = self._buckets(keys)
            free = self._low[buckets] == 0
            num_free = free.sum(axis=2)
            is_full = ~num_free.any(axis=1)
            if is_full.any() and len(self._low) < self._max_buckets:
                self._grow()
                continue
            rows = np.arange(len(keys.low))
            choice = num_free.argmax(axis=1)
            places = buckets[rows, choice] * _PLACES + free[rows, choice].argmax(axis=1)
            if is_full.any():
                places[is_full] = self._oldest(buckets[is_full])
            _, first = np.unique(places // _PLACES, return_index=True)
            self._place(places[first], keys.rows(first))
            keys = keys.rows(self._find(keys) < 0)

    def _oldest(self, buckets: Positions) -> Positions:
        """The place in each row's two buckets that was not spoken of for longest."""
        oldest = self._stamps[buckets].reshape(len(buckets), -1).argmin(axis=1)
        bucket = buckets[np.arange(len(buckets)), oldest // _PLACES]
        places: Positions = bucket * _PLACES + oldest % _PLACES
        return places

    def _place(self, positions: Positions, keys: _Keys) -> None:
        """Put hashes there, in place of what there is."""
        self._num_blocks += int((self._low.ravel()[positions] == 0).sum())
        self._holders[positions] = 0
        self._low.ravel()[positions] = keys.low
        self._high.ravel()[positions] = keys.high
        self._touch(positions)

    def _drop(self, slot: int, positions: Positions) -> None:
        """Take the slot's bit from the blocks there, and free the places that nobody needs."""
        word, bit = _bit(slot)
        self._holders[positions, word] &= ~bit
        unheld = np.unique(positions[~self._holders[positions].any(axis=1)])
        self._low.ravel()[unheld] = 0
        self._num_blocks -= len(unheld)

    def _touch(self, positions: Positions) -> None:
        """Note that these blocks were spoken of: of a chain the first ones last, so that they are
        forgotten last."""
        if self._clock + len(positions) > np.iinfo(np.uint32).max:
            self._stamps >>= 1
            self._clock >>= 1
        end = self._clock + len(positions)
        self._stamps.ravel()[positions] = np.arange(end, self._clock, -1, dtype=np.uint32)
        self._clock = end

    def _grow(self) -> None:
        """Double the table: what was in bucket b goes to b or to b + the old number of buckets, by
        the next bit of that half of its hash that had led to b."""
        num_buckets = np.uint64(len(self._low))
        here = np.arange(num_buckets, dtype=np.uint64)[:, None]
        by_low = (self._low & (num_buckets - np.uint64(1))) == here
        goes_up = (np.where(by_low, self._low, self._high) & num_buckets) != 0
        self._low = np.concatenate((self._low, self._low))
        half = len(here)
        self._low[:half][goes_up] = 0
        self._low[half:][~goes_up] = 0
        self._high = np.concatenate((self._high, self._high))
        self._stamps = np.concatenate((self._stamps, self._stamps))
        self._holders = np.concatenate((self._holders, self._holders))
        self._holders[self._low.ravel() == 0] = 0


def _bit(slot: int) -> tuple[int, np.uint64]:
    """The word of a place's holders in which a slot has its bit, and that bit."""
    return slot // _WORD_BITS, np.uint64(1 << slot % _WORD_BITS)


def _keys(hashes: bytes) -> _Keys:
    """`hashes`, 16 bytes each. Raises ValueError if their length is no multiple of that."""
    if len(hashes) % HASH_SIZE_BYTES:
        raise ValueError(f"hashes: got {len(hashes)} bytes, expected a multiple of 16")
    halves = np.frombuffer(hashes, "<u8").reshape(-1, 2)
    return _Keys(np.maximum(halves[:, 0], np.uint64(1)), np.ascontiguousarray(halves[:, 1]))


def _power_of_two(least: int) -> int:
    """The smallest power of two that is not below `least`."""
    return 1 << (least - 1).bit_length()
