"""The index of prefixes: what a dictionary of sets would be, and as small as it says."""

import os
import random

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.prefix.prefix_index import PrefixIndex

BLOCKS = [os.urandom(16) for _ in range(40)]
# Some that share a half with others, or begin with zeros.
BLOCKS += [BLOCKS[0][:8] + BLOCKS[1][8:], BLOCKS[0][:8] + BLOCKS[2][8:], bytes(8) + BLOCKS[3][:8]]
MANY = [os.urandom(16) for _ in range(3000)]
CHAIN = st.lists(st.sampled_from(BLOCKS), max_size=30)


class IndexMachine(RuleBasedStateMachine):
    """Replicas that come, store, remove, clear and go, more than fit into one word of bits."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(8192)
        self.held: dict[int, set[bytes]] = {}

    @rule(count=st.sampled_from([1, 1, 1, 70]))
    def come(self, count: int) -> None:
        for _ in range(count):
            slot = self.index.open_slot()
            assert slot not in self.held
            self.held[slot] = set()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), blocks=CHAIN)
    def store(self, data: st.DataObject, blocks: list[bytes]) -> None:
        slot = data.draw(st.sampled_from(sorted(self.held)))
        self.index.store(slot, b"".join(blocks))
        self.held[slot] |= set(blocks)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), start=st.integers(0, len(MANY)))
    def store_many(self, data: st.DataObject, start: int) -> None:
        """The table grows."""
        slot = data.draw(st.sampled_from(sorted(self.held)))
        self.index.store(slot, b"".join(MANY[start:]))
        self.held[slot] |= set(MANY[start:])

    @precondition(lambda self: self.held)
    @rule(data=st.data(), blocks=CHAIN)
    def remove(self, data: st.DataObject, blocks: list[bytes]) -> None:
        slot = data.draw(st.sampled_from(sorted(self.held)))
        self.index.remove(slot, b"".join(blocks))
        self.held[slot] -= set(blocks)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def clear(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.held)))
        self.index.clear(slot)
        self.held[slot] = set()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def copy(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.held)))
        self.held[self.index.copy_slot(slot)] = set(self.held[slot])

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.held)))
        self.index.close_slot(slot)
        del self.held[slot]

    @rule(blocks=CHAIN)
    def ask(self, blocks: list[bytes]) -> None:
        self.compare(blocks)

    @rule(start=st.integers(0, len(MANY) - 200), length=st.integers(60, 200))
    def ask_long(self, start: int, length: int) -> None:
        self.compare(MANY[start : start + length])

    @invariant()
    def every_block_is_counted_once(self) -> None:
        assert self.index.num_blocks == len(set().union(*self.held.values()))

    def teardown(self) -> None:
        for block in BLOCKS:
            self.compare([block])

    def compare(self, blocks: list[bytes]) -> None:
        expected = {slot: depth(blocks, held) for slot, held in self.held.items()}
        found = self.index.depths(b"".join(blocks))
        assert found == {slot: length for slot, length in expected.items() if length}


def depth(blocks: list[bytes], held: set[bytes]) -> int:
    return next((i for i, block in enumerate(blocks) if block not in held), len(blocks))


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(max_examples=20, deadline=None)


def test_a_block_takes_less_than_120_bytes_with_64_replicas() -> None:
    index, shuffle = PrefixIndex(2**21), random.Random(0)
    slots = [index.open_slot() for _ in range(64)]
    hashes = np.random.default_rng(0).bytes(16 * 1_000_000)
    chunk = 16 * 4000
    sizes = []
    for start in range(0, len(hashes), chunk):
        blocks = hashes[start : start + chunk]
        for slot in shuffle.sample(slots, 2):
            index.store(slot, blocks)
        # Small tables begin with a fixed size.
        if index.num_blocks > 10_000:
            sizes.append(index.nbytes / index.num_blocks)
    assert index.num_blocks == 1_000_000
    assert max(sizes) <= 120
    assert sizes[-1] <= 60


def test_what_was_not_spoken_of_for_longest_is_forgotten_when_the_index_is_full() -> None:
    index = PrefixIndex(1024)
    slot = index.open_slot()
    precious = os.urandom(16 * 50)
    index.store(slot, precious)
    empty = index.nbytes
    for _ in range(200):
        index.store(slot, os.urandom(16 * 50))
        assert index.depths(precious) == {slot: 50}
        assert index.num_blocks <= 1024
        assert index.nbytes == empty
    assert index.num_blocks > 900
    newest = os.urandom(16 * 50)
    index.store(slot, newest)
    for _ in range(200):
        index.store(slot, os.urandom(16 * 50))
    assert not index.depths(newest)


def test_a_batch_larger_than_the_index_leaves_it_whole() -> None:
    index = PrefixIndex(8)
    first, second = index.open_slot(), index.open_slot()
    blocks = [os.urandom(16) for _ in range(100)]
    index.store(first, b"".join(blocks))
    index.store(second, b"".join(blocks[:50]))
    assert 0 < index.num_blocks <= 8
    found = [block for block in blocks if index.depths(block)]
    assert len(found) == index.num_blocks
    index.clear(first)
    index.clear(second)
    assert index.num_blocks == 0


def test_ages_go_on_when_their_clock_has_run_through() -> None:
    index = PrefixIndex(1024)
    slot = index.open_slot()
    old = os.urandom(16 * 100)
    index.store(slot, old)
    index._clock = 2**32 - 150
    new = os.urandom(16 * 100)
    index.store(slot, new)
    index.store(slot, new)
    assert index.depths(new) == {slot: 100}
    assert index.depths(old) == {slot: 100}


@pytest.mark.parametrize("length", [1, 15, 17])
def test_hashes_that_are_none_are_refused(length: int) -> None:
    index = PrefixIndex(8)
    with pytest.raises(ValueError, match=f"got {length} bytes"):
        index.store(index.open_slot(), bytes(length))


def test_an_index_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="max_blocks: got 0"):
        PrefixIndex(0)
