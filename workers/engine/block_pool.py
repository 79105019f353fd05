"""The blocks of the KV cache: who holds them, which ones are cached, which one goes next.

A block is *free*, *held* (by one or more sequences), or *idle* (held by nobody, kept because its
hash may be asked for again). Two rules hold at all times:

- whoever holds a block holds all blocks before it in the chain, and
- a cached block's parent is cached.

So what is cached under a root is prefix-closed, and idle blocks can always be evicted, leaf first.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence

from cluster.prefix.events import CacheChange, CacheEvent, CacheEvents


class OutOfBlocksError(Exception):
    """No block is free and none can be evicted."""


class _Block:
    __slots__ = ("children", "hash", "holders", "last_use", "number", "parent", "token_ids")

    def __init__(self, number: int) -> None:
        self.number = number
        self.holders = 0
        self.hash: bytes | None = None
        self.token_ids: Sequence[int] = ()
        self.parent: _Block | None = None
        self.children: set[_Block] = set()
        self.last_use = 0


class BlockPool:
    """Allocates blocks ``1 .. num_blocks-1``; block 0 is the null block, which nobody owns."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"num_blocks: got {num_blocks}, expected at least 2")
        self._blocks = [_Block(number) for number in range(num_blocks)]
        self._free = list(range(num_blocks - 1, 0, -1))
        self._cached: dict[bytes, _Block] = {}
        self._num_idle = 0
        self._clock = 0
        # Idle leaves by last use. Entries are not removed when they cease to be true, only skipped.
        self._leaves: list[tuple[int, int]] = []
        self._events: CacheEvents | None = None
        self.on_evict: Callable[[int, bytes], None] | None = None
        """Told each cached block, and its hash, that is about to be given to somebody else."""

    @property
    def num_blocks(self) -> int:
        """Blocks that can be allocated, in whatever state."""
        return len(self._blocks) - 1

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give out: free and idle ones."""
        return len(self._free) + self._num_idle

    @property
    def num_cached(self) -> int:
        """Blocks that can be found by hash, held ones included."""
        return len(self._cached)

    def listen(self) -> None:
        """Have `take_events` tell what is cached now, and all that changes from now on."""
        self._events = CacheEvents()
        for block_hash in self._cached:
            self._events.note(CacheChange.STORED, block_hash)

    def take_events(self) -> list[CacheEvent]:
        """What became cached and what ceased to be, since the last time, in order.

        Nothing until somebody listens. Whoever does is to ask often: events gather.
        """
        return self._events.take() if self._events is not None else []

    def missing(self, hashes: Iterable[bytes]) -> list[bytes]:
        """Those of some blocks that are not cached."""
        return [block_hash for block_hash in hashes if block_hash not in self._cached]

    def allocate(self) -> int:
        """A block with one holder and undefined content. Raises OutOfBlocksError."""
        if not self._free:
            self._evict()
        number = self._free.pop()
        self._blocks[number].holders = 1
        return number

    def hold(self, numbers: Iterable[int]) -> None:
        """Add a holder to each of the blocks."""
        for number in numbers:
            block = self._blocks[number]
            if block.holders == 0:
                self._num_idle -= 1
            block.holders += 1

    def release(self, numbers: Sequence[int]) -> None:
        """Take a holder from each of a sequence's blocks, in order; null blocks are skipped."""
        self._clock += 1
        for number in reversed(numbers):
            if number:
                self._release_one(self._blocks[number])

    def num_holders(self, number: int) -> int:
        """How many sequences hold the block."""
        return self._blocks[number].holders

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """The cached blocks for the longest prefix of `hashes`, in order; they are not held yet."""
        found = []
        for block_hash in hashes:
            block = self._cached.get(block_hash)
            if block is None:
                break
            found.append(block.number)
        return found

    def match_within(self, parent: int, token_ids: Sequence[int]) -> tuple[int, int]:
        """The cached block after `parent` that begins most like `token_ids`.

        Returns it and how many of its first tokens are the same, (0, 0) if none are.
        """
        best, most = 0, 0
        for child in self._blocks[parent].children:
            length = _common_length(child.token_ids, token_ids)
            if (length, -child.number) > (most, -best) and length:
                best, most = child.number, length
        return best, most

    def is_cached(self, number: int) -> bool:
        """Whether the block can be found by its hash."""
        return self._blocks[number].hash is not None

    def register(
        self,
        number: int,
        block_hash: bytes,
        parent: int | None,
        token_ids: Sequence[int] = (),
    ) -> int:
        """Make a full, held block findable by its hash; returns the block to hold from now on.

        `parent` is the block before it, None for the first one; `token_ids` are the block's. If
        another block with that hash is cached already, the holder's share moves there and the given
        block is released. If the parent is not cached, nothing happens.
        """
        above = None if parent is None else self._blocks[parent]
        if above is not None and above.hash is None:
            return number
        twin = self._cached.get(block_hash)
        if twin is not None:
            if twin.number != number:
                self.hold([twin.number])
                self._release_one(self._blocks[number])
            return twin.number
        block = self._blocks[number]
        block.hash = block_hash
        block.token_ids = token_ids
        block.parent = above
        if above is not None:
            above.children.add(block)
        self._cached[block_hash] = block
        if self._events is not None:
            self._events.note(CacheChange.STORED, block_hash)
        return number

    def forget(self, number: int) -> None:
        """Make a block and all cached blocks that follow it unfindable; idle ones become free."""
        above = self._blocks[number].parent
        pending = [self._blocks[number]]
        while pending:
            block = pending.pop()
            pending.extend(block.children)
            if block.hash is not None:
                self._uncache(block)
                if block.holders == 0:
                    self._num_idle -= 1
                    self._free.append(block.number)
        if above is not None and above.holders == 0:
            self._enter_leaf(above)

    def clear_cache(self) -> None:
        """Forget every cached block."""
        for block in list(self._cached.values()):
            if block.parent is None:
                self.forget(block.number)
        if self._events is not None:
            self._events.note_cleared()

    def check_integrity(self, held: Iterable[Sequence[int]]) -> None:
        """Compare the books with the block tables of all live sequences.

        Raises AssertionError that says what does not add up.
        """
        holders = [0] * len(self._blocks)
        for table in held:
            for number in table:
                holders[number] += 1
        for block in self._blocks[1:]:
            assert block.holders == holders[block.number], (
                f"block {block.number} has {block.holders} holders on the books, "
                f"{holders[block.number]} in the tables"
            )
            if block.hash is not None:
                assert self._cached[block.hash] is block
                assert block.parent is None or block.parent.hash is not None
        idle = sum(b.holders == 0 and b.hash is not None for b in self._blocks[1:])
        busy = sum(b.holders > 0 for b in self._blocks[1:])
        assert idle == self._num_idle, f"{idle} idle blocks, {self._num_idle} on the books"
        assert len(set(self._free)) == len(self._free), "a block is free twice"
        assert len(self._free) + idle + busy == self.num_blocks, (
            f"{len(self._free)} free + {idle} idle + {busy} held != {self.num_blocks}"
        )

    def _release_one(self, block: _Block) -> None:
        assert block.holders > 0, f"block {block.number} is released more often than held"
        block.holders -= 1
        if block.holders:
            return
        if block.hash is None:
            self._free.append(block.number)
            return
        self._num_idle += 1
        block.last_use = self._clock
        self._enter_leaf(block)

    def _enter_leaf(self, block: _Block) -> None:
        if block.children:
            return
        heapq.heappush(self._leaves, (block.last_use, block.number))
        if len(self._leaves) > 4 * len(self._blocks):
            self._leaves = [entry for entry in set(self._leaves) if self._is_idle_leaf(entry)]
            heapq.heapify(self._leaves)

    def _is_idle_leaf(self, entry: tuple[int, int]) -> bool:
        last_use, number = entry
        block = self._blocks[number]
        return (
            block.holders == 0
            and block.hash is not None
            and not block.children
            and block.last_use == last_use
        )

    def _evict(self) -> None:
        """Free the idle leaf that has not been used for longest."""
        while self._leaves:
            entry = heapq.heappop(self._leaves)
            if self._is_idle_leaf(entry):
                block = self._blocks[entry[1]]
                parent = block.parent
                if self.on_evict is not None and block.hash is not None:
                    self.on_evict(block.number, block.hash)
                self._uncache(block)
                self._num_idle -= 1
                self._free.append(block.number)
                if parent is not None and parent.holders == 0:
                    self._enter_leaf(parent)
                return
        raise OutOfBlocksError

    def _uncache(self, block: _Block) -> None:
        assert block.hash is not None
        del self._cached[block.hash]
        if self._events is not None:
            self._events.note(CacheChange.REMOVED, block.hash)
        block.hash = None
        if block.parent is not None:
            block.parent.children.discard(block)
            block.parent = None


def _common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """How many first elements are the same."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))
