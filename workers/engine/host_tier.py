"""Which blocks are kept in host memory, and when they travel; the leader's books.

A step's plan carries the transfers: saves come before all else that a step does with blocks, loads
after it has cleared and copied some, and before anything is computed. All ranks carry plans out in
order, so a block is saved with what earlier steps wrote, and a slot is loaded with what was saved.
A block that is yet to be loaded is not to be copied from.
"""

from collections.abc import Collection, Sequence
from threading import Lock
from typing import NamedTuple, Protocol

from workers.engine.slot_pool import SlotPool
from workers.engine.tier_stats import TierStats


class Transfers(NamedTuple):
    """What a step moves between the KV cache and host memory."""

    saves: list[tuple[int, int]]
    """(block, slot)"""
    loads: list[tuple[int, int]]
    """(slot, block)"""


NO_TRANSFERS = Transfers([], [])


class Outlet(Protocol):
    """Where blocks go that other replicas may want."""

    def has_room(self, num_ahead: int, *, is_reused: bool) -> bool:
        """Whether one more would be taken, so many being promised; less readily if only one request
        has used it."""

    def offer(self, slot: int, block_hash: bytes) -> None:
        """Take a block from a slot, which stays as it is until it is released."""


class HostTier:
    """Keeps evicted blocks in host slots and has them loaded when they are asked for again.

    With an outlet, blocks are offered there when they are found for the first time, for then two
    requests have used them, and when they are evicted without that, which is the last moment.
    Safe on any thread: what comes from elsewhere is put into slots by a thread of its own.
    """

    def __init__(self, num_slots: int, stats: TierStats) -> None:
        self._pool = SlotPool(num_slots)
        self._lock = Lock()
        self._stats = stats
        self._outlet: Outlet | None = None
        self._saves: dict[int, int] = {}
        """Block by slot, not in any plan yet."""
        self._loads: dict[int, int] = {}
        """Slot by block, not in any plan yet."""
        self._unsaved: set[int] = set()
        """Slots to which a plan saves that has not been carried out."""
        self._wishes: dict[int, bytes] = {}
        """To be offered once they are saved."""
        self._offered: dict[int, bytes] = {}
        """Hashes of blocks in the device's cache that need not be offered again."""
        self._brought: set[int] = set()
        """Slots that hold what was brought from elsewhere and not used yet."""

    def serve(self, outlet: Outlet) -> None:
        """Offer blocks there from now on."""
        self._outlet = outlet

    @property
    def num_slots(self) -> int:
        """In all."""
        return self._pool.num_slots

    @property
    def num_known(self) -> int:
        """Blocks that can be found."""
        return self._pool.num_known

    def listen(self) -> None:
        """Have `take_changes` tell what is here now, and what comes or goes from now on."""
        with self._lock:
            self._pool.listen()

    def take_changes(self, gone: Collection[bytes]) -> tuple[list[bytes], list[bytes]]:
        """What came or went since the last time, and what is `gone` from the device: of these, the
        blocks that can be found here now; and those that came or went that cannot, but for those
        forgotten by `clear`."""
        with self._lock:
            changed = self._pool.take_changed()
            found = [h for h in changed.union(gone) if self._pool.find(h) is not None]
            return found, list(changed.difference(found))

    def evicted(self, block: int, block_hash: bytes) -> None:
        """A cached block is about to be given to somebody else."""
        with self._lock:
            is_offered = self._offered.pop(block, None) == block_hash
            slot = self._loads.pop(block, None)
            if slot is not None:
                self._pool.unpin(slot)
            if self._pool.find(block_hash) is not None:
                self._pool.touch([block_hash])
                return
            slot, outlet = self._save(block, block_hash), self._outlet
            if slot is None or is_offered or outlet is None:
                return
            if outlet.has_room(len(self._wishes), is_reused=False):
                self._wishes[slot] = block_hash

    def found(self, hashes: Sequence[bytes], blocks: Sequence[int]) -> None:
        """Cached blocks of one chain, in order, are used by one more request."""
        with self._lock:
            self._pool.touch(hashes)
            if self._outlet is not None:
                for block_hash, block in zip(hashes, blocks, strict=True):
                    if self._offered.get(block) != block_hash:
                        self._offer(self._outlet, block_hash, block)

    def num_found(self, hashes: Sequence[bytes]) -> int:
        """How many leading blocks are in slots."""
        with self._lock:
            return len(self._pool.match(hashes))

    def take(self, hashes: Sequence[bytes]) -> list[int]:
        """The slots of the longest prefix of `hashes`, pinned until each is loaded."""
        with self._lock:
            slots = self._pool.match(hashes)
            self._pool.touch(hashes[: len(slots)])
            for slot in slots:
                self._pool.pin(slot)
            return slots

    def load(self, slot: int, block: int, block_hash: bytes) -> bool:
        """Have the next step load a slot that was taken; whether it was brought from elsewhere."""
        with self._lock:
            self._loads[block] = slot
            is_brought = slot in self._brought
            self._brought.discard(slot)
            if is_brought:
                self._offered[block] = block_hash
            elif self._outlet is not None:
                self._offer(self._outlet, block_hash, block)
            return is_brought

    def is_loading(self, block: int) -> bool:
        """Whether a block's content comes with the step that is planned now."""
        return block in self._loads

    def hand_out(self) -> Transfers:
        """What the step that is planned now has to move."""
        if not self._saves and not self._loads:
            return NO_TRANSFERS
        with self._lock:
            saves = [(block, slot) for slot, block in self._saves.items()]
            loads = [(slot, block) for block, slot in self._loads.items()]
            for _, slot in saves:
                self._pool.pin(slot)
                self._unsaved.add(slot)
            self._saves, self._loads = {}, {}
            return Transfers(saves, loads)

    def carried_out(self, saves: list[tuple[int, int]], loads: list[tuple[int, int]]) -> None:
        """The leader has made a step's transfers, and other ranks do so before any later one's."""
        if not saves and not loads:
            return
        with self._lock:
            for _, slot in saves:
                self._unsaved.discard(slot)
                wish = self._wishes.pop(slot, None)
                if wish is not None and self._outlet is not None and self._pool.find(wish) == slot:
                    self._pool.pin(slot)
                    self._outlet.offer(slot, wish)
                self._pool.unpin(slot)
            for slot, _ in loads:
                self._pool.unpin(slot)
        self._stats.blocks_saved += len(saves)
        self._stats.blocks_loaded += len(loads)

    def reserve(self, most: int) -> list[int]:
        """Slots to bring blocks to, at most half of all."""
        with self._lock:
            slots = self._pool.reserve(min(most, self._pool.num_slots // 2))
            for slot in slots:
                self._discard(slot)
            return slots

    def brought(self, slot: int, block_hash: bytes) -> None:
        """A reserved slot now has the block."""
        with self._lock:
            if self._pool.fill(slot, block_hash):
                self._brought.add(slot)

    def release(self, slots: Sequence[int]) -> None:
        """Of slots reserved in vain, or taken, or offered: they are not needed any more."""
        with self._lock:
            for slot in slots:
                self._pool.unpin(slot)

    def clear(self) -> None:
        """Forget all blocks."""
        with self._lock:
            self._pool.clear()
            # Blocks that are to be loaded from there are held by somebody.
            awaited = set(self._loads.values())
            self._saves = {s: block for s, block in self._saves.items() if s in awaited}
            self._wishes.clear()
            self._offered.clear()
            self._brought.clear()

    def check_integrity(self) -> None:
        """Raise AssertionError if the books do not balance."""
        with self._lock:
            self._pool.check_integrity()

    def _save(self, block: int, block_hash: bytes) -> int | None:
        slot = self._pool.put(block_hash)
        if slot is None:
            self._stats.blocks_dropped += 1
            return None
        self._discard(slot)
        self._saves[slot] = block
        return slot

    def _discard(self, slot: int) -> None:
        """What was planned for the slot's last block is void."""
        self._saves.pop(slot, None)
        self._wishes.pop(slot, None)
        self._brought.discard(slot)

    def _offer(self, outlet: Outlet, block_hash: bytes, block: int) -> None:
        """Offer a cached block, if there is room; else it has its chance when next found."""
        if not outlet.has_room(len(self._wishes), is_reused=True):
            return
        slot = self._pool.find(block_hash)
        if slot is None:
            slot = self._save(block, block_hash)
            if slot is None:
                return
        self._offered[block] = block_hash
        if slot in self._saves or slot in self._unsaved:
            self._wishes[slot] = block_hash
        else:
            self._pool.pin(slot)
            outlet.offer(slot, block_hash)
