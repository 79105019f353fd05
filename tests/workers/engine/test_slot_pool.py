"""Slot pool: no slot has two blocks, none is given out while it is in use, leaves go first."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from workers.engine.slot_pool import SlotPool

NAMES = st.integers(0, 15).map(lambda number: bytes([number]))


class SlotMachine(RuleBasedStateMachine):
    """Blocks that are put, brought, pinned and forgotten in any order; `content` is what whoever
    was given a slot has written there."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = SlotPool(6)
        self.content: dict[int, bytes] = {}
        self.pins: list[int] = []
        self.reserved: list[int] = []

    @rule(name=NAMES)
    def put(self, name: bytes) -> None:
        if self.pool.find(name) is not None:
            return
        slot = self.pool.put(name)
        if slot is None:
            assert {*self.pins, *self.reserved} == set(range(6))
            return
        assert slot not in self.pins + self.reserved, "given out while in use"
        self.content[slot] = name

    @rule(most=st.integers(0, 4))
    def reserve(self, most: int) -> None:
        slots = self.pool.reserve(most)
        assert len(set(slots)) == len(slots) <= most
        assert not set(slots) & {*self.pins, *self.reserved}
        for slot in slots:
            self.content.pop(slot, None)
        self.reserved += slots

    @precondition(lambda self: self.reserved)
    @rule(name=NAMES)
    def fill(self, name: bytes) -> None:
        slot, before = self.reserved.pop(), self.pool.find(name)
        assert self.pool.fill(slot, name) == (before is None)
        if before is None:
            self.content[slot] = name

    @precondition(lambda self: self.reserved)
    @rule()
    def reserved_in_vain(self) -> None:
        self.pool.unpin(self.reserved.pop())

    @rule(name=NAMES)
    def pin(self, name: bytes) -> None:
        slot = self.pool.find(name)
        if slot is not None:
            self.pool.pin(slot)
            self.pins.append(slot)

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.pins))
        self.pins.remove(slot)
        self.pool.unpin(slot)

    @rule(names=st.lists(NAMES, unique=True))
    def touch(self, names: list[bytes]) -> None:
        self.pool.touch(names)

    @rule()
    def clear(self) -> None:
        self.pool.clear()
        assert self.pool.num_known == 0

    @invariant()
    def what_is_found_was_written(self) -> None:
        self.pool.check_integrity()
        for name in range(16):
            slot = self.pool.find(bytes([name]))
            assert slot is None or self.content[slot] == bytes([name])

    def teardown(self) -> None:
        for slot in self.pins + self.reserved:
            self.pool.unpin(slot)
        self.pool.clear()
        assert len(self.pool.reserve(7)) == 6, "a slot has leaked"


TestSlots = SlotMachine.TestCase


def chain(name: str, length: int) -> list[bytes]:
    return [f"{name}{i}".encode() for i in range(length)]


def test_the_least_recently_used_chain_goes_leaf_first() -> None:
    pool = SlotPool(6)
    old, new = chain("old", 3), chain("new", 3)
    for name in [*reversed(old), *reversed(new)]:  # as the device's pool gives them up
        pool.put(name)
    pool.put(b"x")
    assert (len(pool.match(old)), len(pool.match(new))) == (2, 3)
    pool.touch(old[:2])
    pool.put(b"y")
    assert (len(pool.match(old)), len(pool.match(new))) == (2, 2)


def test_pins_must_be_there_to_be_taken_back() -> None:
    pool = SlotPool(1)
    with pytest.raises(AssertionError, match="more often"):
        pool.unpin(0)
    with pytest.raises(ValueError, match="num_slots"):
        SlotPool(0)
