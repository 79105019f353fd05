"""Segments: memory that processes share by a path, and that is gone with the last of them."""

import gc
import os
from pathlib import Path

import pytest

from workers.parallel.segment import Segment, SegmentError


def mapped(name: str) -> bool:
    return name in Path("/proc/self/maps").read_text()


def test_who_opens_a_segment_sees_what_its_creator_writes() -> None:
    creator = Segment.create(100)
    other = Segment.open(creator.path, 100)
    assert bytes(other.memory) == bytes(100), "zeros at first"
    creator.memory[7] = b"x"
    assert other.memory[7] == b"x"
    other.memory[8] = b"y"
    assert creator.memory[8] == b"y"
    creator.close()
    other.close()


def test_memory_stays_while_somebody_holds_it() -> None:
    segment = Segment.create(100)
    name, memory = segment.path.partition("#")[2], segment.memory
    segment.close()
    segment.close()
    memory[0] = b"x"
    assert mapped(name)
    with pytest.raises(ValueError, match="closed"):
        _ = segment.memory
    del memory
    gc.collect()
    assert not mapped(name)


def test_nothing_can_be_opened_but_that_very_segment() -> None:
    segment, another = Segment.create(100), Segment.create(100)
    name = segment.path.partition("#")[2]
    with pytest.raises(SegmentError, match="of 100 bytes, expected 64"):
        Segment.open(segment.path, 64)
    with pytest.raises(SegmentError, match="/memfd:"):
        Segment.open(f"{another.path.partition('#')[0]}#{name}", 100)
    segment.close()
    another.close()
    with pytest.raises(SegmentError, match="/proc/"):
        Segment.open(segment.path, 100)


def test_a_segment_that_cannot_be_had_is_a_typed_error() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for num_bytes in (0, -1, 2**62):
        with pytest.raises(SegmentError, match=f"{num_bytes} bytes of shared memory"):
            Segment.create(num_bytes)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
