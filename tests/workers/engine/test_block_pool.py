"""Block pool: nothing leaks, nothing is shared that differs, what is cached is prefix-closed."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.prefix.events import CacheChange, CacheEvent
from workers.engine.block_pool import BlockPool, OutOfBlocksError

ROOT = b"root"


class PoolMachine(RuleBasedStateMachine):
    """Sequences that take, fill, share and give back blocks in any order.

    The content of each block is modelled as the path of letters that leads to it; its hash is that
    path. Sharing is right if a block found by a path has been filled with that path.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(12)
        self.tables: list[tuple[list[int], bytes]] = []
        self.content: dict[int, bytes] = {}
        self.pool.listen()
        self.told: set[bytes] = set()

    @rule(path=st.text("ab", min_size=1, max_size=6))
    def start(self, path: str) -> None:
        """A sequence adopts what is cached of its path and computes the rest."""
        wanted = [path[: i + 1].encode() for i in range(len(path))]
        table = self.pool.match(wanted)
        for number, block_hash in zip(table, wanted, strict=False):
            assert self.content[number] == block_hash, "found a block with other content"
        self.pool.hold(table)
        try:
            for block_hash in wanted[len(table) :]:
                number = self.pool.allocate()
                assert all(number not in other for other, _ in self.tables), "block is in use"
                self.content[number] = block_hash
                parent = table[-1] if table else None
                table.append(self.pool.register(number, block_hash, parent))
        except OutOfBlocksError:
            assert self.pool.num_available == 0
            self.pool.release(table)
            return
        self.tables.append((table, path.encode()))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        self.pool.release(self.tables.pop(index)[0])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        table, path = data.draw(st.sampled_from(self.tables))
        self.pool.hold(table)
        self.tables.append((list(table), path))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        table, _ = data.draw(st.sampled_from(self.tables))
        self.pool.forget(data.draw(st.sampled_from(table)))

    @rule()
    def clear(self) -> None:
        self.pool.clear_cache()
        assert self.pool.num_cached == 0

    @invariant()
    def books_are_right(self) -> None:
        self.pool.check_integrity([table for table, _ in self.tables])

    @rule()
    def tell(self) -> None:
        """What the pool says, in order, is what it has cached."""
        for event in self.pool.take_events():
            self.told = replayed(self.told, event)
        numbers = range(1, self.pool.num_blocks + 1)
        assert self.told == {self.content[n] for n in numbers if self.pool.is_cached(n)}

    @invariant()
    def held_blocks_have_their_content(self) -> None:
        for table, path in self.tables:
            assert [self.content[n] for n in table] == [path[: i + 1] for i in range(len(path))]

    def teardown(self) -> None:
        for table, _ in self.tables:
            self.pool.release(table)
        assert self.pool.num_available == self.pool.num_blocks


TestPool = PoolMachine.TestCase


def replayed(cached: set[bytes], event: CacheEvent) -> set[bytes]:
    """What is cached after the event, which says nothing that was so before."""
    named = set(event.hashes)
    assert len(named) == len(event.hashes)
    if event.change is CacheChange.STORED:
        assert not named & cached
        return cached | named
    if event.change is CacheChange.REMOVED:
        assert named <= cached
        return cached - named
    assert not named
    return set()


def cached_chain(pool: BlockPool, name: str, length: int) -> list[bytes]:
    """Fill and release a chain of blocks; returns its hashes."""
    hashes = [f"{name}{i}".encode() for i in range(length)]
    table: list[int] = []
    for block_hash in hashes:
        parent = table[-1] if table else None
        table.append(pool.register(pool.allocate(), block_hash, parent))
    pool.release(table)
    return hashes


def test_eviction_takes_the_least_recently_used_chain_from_its_leaf() -> None:
    pool = BlockPool(7)
    old, new = cached_chain(pool, "old", 3), cached_chain(pool, "new", 3)
    pool.allocate()
    assert len(pool.match(old)) == 2
    assert len(pool.match(new)) == 3
    pool.allocate()
    pool.allocate()
    assert len(pool.match(old)) == 0
    assert len(pool.match(new)) == 3


def test_use_makes_a_chain_recent() -> None:
    pool = BlockPool(7)
    old, new = cached_chain(pool, "old", 3), cached_chain(pool, "new", 3)
    table = pool.match(old)
    pool.hold(table)
    pool.release(table)
    pool.allocate()
    assert len(pool.match(old)) == 3
    assert len(pool.match(new)) == 2


def test_twin_blocks_become_one() -> None:
    pool = BlockPool(4)
    first, second = pool.allocate(), pool.allocate()
    assert pool.register(first, b"same", None) == first
    assert pool.register(second, b"same", None) == first
    pool.check_integrity([[first], [first]])


def test_an_empty_pool_raises() -> None:
    pool = BlockPool(2)
    pool.allocate()
    with pytest.raises(OutOfBlocksError):
        pool.allocate()


def test_whoever_begins_to_listen_is_told_what_is_there() -> None:
    pool = BlockPool(7)
    hashes = cached_chain(pool, "old", 3)
    assert pool.take_events() == []
    pool.listen()
    assert pool.take_events() == [CacheEvent(CacheChange.STORED, hashes)]
    assert pool.take_events() == []


def test_a_cache_that_is_cleared_is_told_of_in_one_word() -> None:
    pool = BlockPool(7)
    pool.listen()
    cached_chain(pool, "old", 3)
    pool.clear_cache()
    new = cached_chain(pool, "new", 2)
    cleared, stored = pool.take_events()
    assert cleared == CacheEvent(CacheChange.CLEARED, [])
    assert stored == CacheEvent(CacheChange.STORED, new)
