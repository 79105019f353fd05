"""Block tables of sequences: which blocks a sequence holds, and what it shares with others."""

from array import array
from bisect import bisect_left
from itertools import chain

from cluster.prefix.events import CacheChange, CacheEvent
from workers.engine.block_pool import BlockPool
from workers.engine.host_tier import NO_TRANSFERS, HostTier, Transfers
from workers.engine.sequence import LoadedTokens, Sequence

CopyPair = tuple[int, int]
"""(source block, destination block)"""


class KVBlocks:
    """Gives sequences their blocks, and shares blocks of equal prefixes between them.

    `window` is the number of tokens that every layer can look back at, None if any layer sees all.
    """

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        *,
        share_prefixes: bool,
        window: int | None,
        host: HostTier | None = None,
    ) -> None:
        """With a `host` tier, blocks that have left the pool come back from there."""
        self.pool = pool
        self._host = host
        if host is not None:
            pool.on_evict = host.evicted
        self.block_size = block_size
        self._share_prefixes = share_prefixes
        self._window = window
        self._unclean: set[int] = set()

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens`."""
        return -(-num_tokens // self.block_size)

    def peak_blocks(self, num_tokens: int, step_tokens: int) -> int:
        """Blocks that a sequence of `num_tokens` cannot do without at its longest.

        `step_tokens` is how many tokens one step may add.
        """
        if self._window is not None:
            num_tokens = min(num_tokens, self._window + step_tokens + self.block_size)
        return self.blocks_for(num_tokens)

    def num_shareable(self, num_tokens: int) -> int:
        """Blocks that sequences with the same `num_tokens` first tokens share to their end.

        None with a sliding window, which gives them back.
        """
        return 0 if self._window is not None else num_tokens // self.block_size

    def num_shared(self, sequence: Sequence) -> int:
        """Those blocks of the sequence that others hold too, all at its table's start."""
        table, num_full = sequence.block_table, self.num_shareable(sequence.num_computed)
        if not num_full or self.pool.num_holders(table[0]) == 1:
            return 0
        # Whoever holds a block holds all before it.
        return bisect_left(table, x=True, hi=num_full, key=lambda n: self.pool.num_holders(n) == 1)

    def adopt_prefix(self, sequence: Sequence) -> int:
        """Hold the cached blocks of the sequence's longest known prefix; returns its tokens.

        The last of them may be a block of which only the first tokens are the same. At least one
        token is left to compute, since its logits are wanted.
        """
        if not self._share_prefixes:
            return 0
        hashes = self.usable_hashes(sequence)
        blocks = self.pool.match(hashes)
        self.pool.hold(blocks)
        is_continued = False
        if self._host is not None:
            self._host.found(hashes[: len(blocks)], blocks)
            is_continued = self._host.num_found(hashes[len(blocks) : len(blocks) + 1]) > 0
        sequence.block_table = array("q", blocks)
        sequence.num_registered = len(blocks)
        sequence.num_computed = len(blocks) * self.block_size
        if blocks and not is_continued:
            self._adopt_within(sequence)
        sequence.num_scheduled = sequence.num_computed
        return sequence.num_computed

    def usable_hashes(self, sequence: Sequence) -> list[bytes]:
        """Of the blocks that the sequence could take from others."""
        if not sequence.block_hashes:
            sequence.block_hashes = sequence.hasher.next(sequence.token_ids, self.block_size)
        return sequence.block_hashes[: (len(sequence.token_ids) - 1) // self.block_size]

    def missing_hashes(self, sequence: Sequence) -> list[bytes]:
        """Of the blocks that the sequence could take from others, those that are in no tier here
        and follow what is."""
        if not self._share_prefixes:
            return []
        hashes = self.usable_hashes(sequence)
        rest = hashes[len(self.pool.match(hashes)) :]
        return rest if self._host is None else rest[self._host.num_found(rest) :]

    def load_prefix(self, sequence: Sequence) -> LoadedTokens:
        """Have the next step load what follows the adopted prefix in host memory; returns its
        tokens.

        The blocks are cached from now on. Nothing is loaded where blocks are so few that they might
        have to go before the sequence has ended its prompt.
        """
        table = sequence.block_table
        host = self._host if self._share_prefixes else None
        missing = self.blocks_for(len(sequence.token_ids)) - len(table)
        ends_within_block = sequence.num_computed % self.block_size
        if host is None or ends_within_block or self.pool.num_available < missing:
            return LoadedTokens()
        hashes = self.usable_hashes(sequence)[len(table) :]
        slots = host.take(hashes)
        num_brought = 0
        for slot, name in zip(slots, hashes, strict=False):
            parent, start = table[-1] if table else None, len(table) * self.block_size
            block = self.pool.allocate()
            num_brought += host.load(slot, block, name)
            tokens = sequence.token_ids[start : start + self.block_size]
            table.append(self.pool.register(block, name, parent, tokens))
        sequence.num_registered = len(table)
        sequence.num_computed = sequence.num_scheduled = len(table) * self.block_size
        return LoadedTokens(
            (len(slots) - num_brought) * self.block_size, num_brought * self.block_size
        )

    def listen(self) -> None:
        """Have `take_events` tell what is cached now, and all that changes from now on."""
        self.pool.listen()
        if self._host is not None:
            self._host.listen()

    def take_events(self) -> list[CacheEvent]:
        """What can be found here since the last time, in the pool or only in host memory, and what
        cannot any more, in order."""
        events = self.pool.take_events()
        if self._host is not None:
            removed = (hashes for change, hashes in events if change is CacheChange.REMOVED)
            lowered, lost = self._host.take_changes([*chain.from_iterable(removed)])
            for change, hashes in (CacheChange.LOWERED, lowered), (CacheChange.REMOVED, lost):
                if away := self.pool.missing(hashes):
                    events.append(CacheEvent(change, away))
        return events

    def hand_out_transfers(self) -> Transfers:
        """What the step that is planned now moves from and to host memory."""
        return NO_TRANSFERS if self._host is None else self._host.hand_out()

    def _adopt_within(self, sequence: Sequence) -> None:
        """Hold the cached block that begins like the sequence's next one, to be copied on write.

        Not where blocks are so few that it had better be evicted.
        """
        table, start = sequence.block_table, sequence.num_computed
        end = min(start + self.block_size, len(sequence.token_ids) - 1)
        following = sequence.token_ids[start:end]
        block, num_tokens = self.pool.match_within(table[-1], following)
        if not num_tokens or (self._host is not None and self._host.is_loading(block)):
            return
        self.pool.hold([block])
        if self.pool.num_available < self.blocks_for(len(sequence.token_ids)) - len(table):
            self.pool.release([block])
            return
        table.append(block)
        sequence.num_computed = start + num_tokens

    def blocks_needed(self, sequence: Sequence, num_tokens: int) -> int:
        """Blocks to allocate before `num_tokens` more can be computed, copies on write included."""
        end = sequence.num_scheduled + num_tokens
        missing = self.blocks_for(end) - len(sequence.block_table)
        return missing + (self._shared_tail(sequence) is not None)

    def extend(self, sequence: Sequence, num_tokens: int) -> CopyPair | None:
        """Make room for `num_tokens` more tokens.

        The caller has made sure that `blocks_needed` are available. Returns the copy to make before
        the step if the block to be written is shared.
        """
        table = sequence.block_table
        copy = None
        shared = self._shared_tail(sequence)
        if shared is not None:
            source = table[shared]
            table[shared] = self.pool.allocate()
            self.pool.release([source])
            copy = (source, table[shared])
        for _ in range(self.blocks_for(sequence.num_scheduled + num_tokens) - len(table)):
            table.append(self.pool.allocate())
        return copy

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let `child`, which has the same tokens, share all of `parent`'s blocks."""
        self.pool.hold(number for number in parent.block_table if number)
        child.block_table = parent.block_table[:]
        child.hasher, child.block_hashes = parent.hasher.copy(), list(parent.block_hashes)
        child.num_registered = parent.num_registered
        child.num_window_freed = parent.num_window_freed
        child.num_computed = parent.num_computed
        child.num_scheduled = parent.num_scheduled

    def register_full(self, sequence: Sequence) -> None:
        """Offer the blocks that have become full to the prefix cache."""
        if not self._share_prefixes or sequence.num_window_freed:
            return
        table, hashes = sequence.block_table, sequence.block_hashes
        for i in range(sequence.num_registered, sequence.num_computed // self.block_size):
            tokens = sequence.token_ids[i * self.block_size : (i + 1) * self.block_size]
            if i == len(hashes):
                hashes += sequence.hasher.next(tokens, self.block_size)
            parent = table[i - 1] if i else None
            table[i] = self.pool.register(table[i], hashes[i], parent, tokens)
            sequence.num_registered = i + 1

    def release(self, sequence: Sequence) -> None:
        """Give back all blocks; what is cached stays findable."""
        self._distrust(sequence, len(sequence.block_table))
        self.pool.release(sequence.block_table)
        sequence.block_table = array("q")
        sequence.num_registered = 0
        sequence.num_window_freed = 0
        sequence.num_computed = 0
        sequence.num_scheduled = 0
        sequence.incarnation += 1

    def take_unclean(self) -> list[int]:
        """The blocks that the next step has to clear before it copies or writes any.

        Their holders lost them before anyone saw whether what they wrote there is finite.
        """
        unclean, self._unclean = self._unclean, set()
        return list(unclean)

    def release_behind_window(self, sequence: Sequence) -> int:
        """Give back blocks that no layer will look at again; returns how many were let go.

        Done only when blocks run short: until then they are worth more as cached prefixes. What
        follows them cannot be found without them, so it leaves the prefix cache too.
        """
        if self._window is None:
            return 0
        first_visible = max(0, sequence.num_scheduled - self._window + 1) // self.block_size
        first, last = sequence.num_window_freed, min(first_visible, len(sequence.block_table))
        self._distrust(sequence, last)
        for i in range(first, last):
            number = sequence.block_table[i]
            self.pool.forget(number)
            sequence.block_table[i] = 0
            self.pool.release([number])
        sequence.num_window_freed = max(first, last)
        return sequence.num_window_freed - first

    def _shared_tail(self, sequence: Sequence) -> int | None:
        """The index of a block that is to be written and that others hold, or may find, too."""
        index, offset = divmod(sequence.num_scheduled, self.block_size)
        if not offset:
            return None
        block = sequence.block_table[index]
        is_shared = self.pool.num_holders(block) > 1 or self.pool.is_cached(block)
        return index if is_shared else None

    def _distrust(self, sequence: Sequence, end: int) -> None:
        """Have those of the table's blocks up to `end` cleared that are written by steps in flight,
        or by one that has failed."""
        if sequence.num_scheduled > sequence.num_computed:
            for number in sequence.block_table[sequence.num_computed // self.block_size : end]:
                if number and self.pool.num_holders(number) == 1:
                    self._unclean.add(number)
