"""The slots of host memory: which block is in which, and which one goes next."""

from collections import Counter, OrderedDict
from collections.abc import Sequence


class SlotPool:
    """Names slots ``0 .. num_slots-1`` by the hash of the block that is in them.

    What has not been used for longest goes first. Of blocks used together the later ones of the
    chain count as used earlier, so that a chain goes leaf first, as in the device's pool. A slot
    that is *pinned* is being read or written: it may lose its name, but is not given out again.
    """

    def __init__(self, num_slots: int) -> None:
        if num_slots < 1:
            raise ValueError(f"num_slots: got {num_slots}, expected at least 1")
        self.num_slots = num_slots
        self._free = list(range(num_slots - 1, -1, -1))
        self._by_hash: OrderedDict[bytes, int] = OrderedDict()
        """Least recently used first."""
        self._hashes: dict[int, bytes] = {}
        self._pins: Counter[int] = Counter()
        self._changed: set[bytes] | None = None
        """Blocks that came or went since somebody asked last, if somebody does."""

    def listen(self) -> None:
        """Have `take_changed` tell what is here now, and what comes or goes from now on."""
        self._changed = set(self._by_hash)

    def take_changed(self) -> set[bytes]:
        """The blocks that came or went since the last time, but for those forgotten by `clear`."""
        if not self._changed:
            return set()
        changed, self._changed = self._changed, set()
        return changed

    @property
    def num_known(self) -> int:
        """Blocks that can be found by hash."""
        return len(self._by_hash)

    def find(self, block_hash: bytes) -> int | None:
        """The slot that the block is in."""
        return self._by_hash.get(block_hash)

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """The slots of the longest prefix of `hashes`, in order."""
        found = []
        for block_hash in hashes:
            slot = self._by_hash.get(block_hash)
            if slot is None:
                break
            found.append(slot)
        return found

    def touch(self, hashes: Sequence[bytes]) -> None:
        """Blocks of one chain, in order, are used; unknown ones are skipped."""
        for block_hash in reversed(hashes):
            if block_hash in self._by_hash:
                self._by_hash.move_to_end(block_hash)

    def put(self, block_hash: bytes) -> int | None:
        """The slot to write a block to that is in none yet, found by its hash from now on.

        None if all slots are pinned.
        """
        slot = self._vacate()
        if slot is not None:
            self._name(slot, block_hash)
        return slot

    def reserve(self, most: int) -> list[int]:
        """Up to `most` slots, pinned once each and without a name, to be written at any time."""
        slots: list[int] = []
        while len(slots) < most and (slot := self._vacate()) is not None:
            self._pins[slot] += 1
            slots.append(slot)
        return slots

    def fill(self, slot: int, block_hash: bytes) -> bool:
        """A reserved slot now has the block; it is unpinned. False if another slot has it too."""
        is_new = block_hash not in self._by_hash
        if is_new:
            self._name(slot, block_hash)
        self.unpin(slot)
        return is_new

    def pin(self, slot: int) -> None:
        """Keep a slot from being given out; counts."""
        self._pins[slot] += 1

    def unpin(self, slot: int) -> None:
        """Take one pin back."""
        assert self._pins[slot] > 0, f"slot {slot} is unpinned more often than pinned"
        self._pins[slot] -= 1
        if not self._pins[slot]:
            del self._pins[slot]
            if slot not in self._hashes:
                self._free.append(slot)

    def clear(self) -> None:
        """Forget all blocks."""
        self._free.extend(slot for slot in self._hashes if slot not in self._pins)
        self._by_hash.clear()
        self._hashes.clear()
        if self._changed is not None:
            self._changed.clear()

    def check_integrity(self) -> None:
        """Raise AssertionError, which says what does not add up."""
        assert {slot: name for name, slot in self._by_hash.items()} == self._hashes
        assert len(set(self._free)) == len(self._free), "a slot is free twice"
        assert not set(self._free) & (self._hashes.keys() | self._pins.keys()), "free, yet in use"
        in_use = len(self._hashes.keys() | self._pins.keys())
        assert len(self._free) + in_use == self.num_slots, (
            f"{len(self._free)} free + {in_use} in use != {self.num_slots}"
        )

    def _name(self, slot: int, block_hash: bytes) -> None:
        self._by_hash[block_hash] = slot
        self._hashes[slot] = block_hash
        self._note(block_hash)

    def _note(self, block_hash: bytes) -> None:
        if self._changed is not None:
            self._changed.add(block_hash)

    def _vacate(self) -> int | None:
        """A slot that is neither named nor pinned: a free one, or the least recently used."""
        if self._free:
            return self._free.pop()
        for block_hash, slot in self._by_hash.items():
            if slot not in self._pins:
                del self._by_hash[block_hash]
                del self._hashes[slot]
                self._note(block_hash)
                return slot
        return None
