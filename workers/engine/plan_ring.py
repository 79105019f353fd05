"""Steps' plans in shared memory: one rank writes them, the others of its machine read them all."""

import ctypes
from time import monotonic

import numpy as np

from workers.engine.step_plan import Ints
from workers.kernels.cpu_collectives import Futex
from workers.parallel.group import RankLostError
from workers.parallel.segment import Segment

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]

CAPACITY_BYTES = 4 * 1024 * 1024
"""Longer plans go through in pieces."""

_WORD_BYTES = 4
_LINE_BYTES = 64
_WRITTEN, _ENDED = 0, 1
"""Words of the first cache line. Each reader's place has a line of its own behind it."""
_WRAP = 2**32
_SPINS = 200
"""Looks before going to sleep, some 20 microseconds."""
_NAP_S = 0.25
"""Longest sleep before looking whether the ring has ended."""


class PlanRing:
    """A stream of bytes in a ring, each plan behind its length.

    Places in the stream are counted modulo 2**32; a reader is waited for when the writer is about
    to run over it. Words are published by plain stores after the bytes that they speak of, which
    x86 processors let everyone see in that order.
    """

    def __init__(
        self, futex: Futex, segment: Segment, num_readers: int, reader: int | None = None
    ) -> None:
        """The writer's end, or that of a reader; `segment` is of `segment_bytes(num_readers)`."""
        self._futex = futex
        self._segment = segment
        self._base = ctypes.addressof(segment.memory)
        bytes_ = np.frombuffer(memoryview(segment.memory), dtype=np.uint8)
        self._words = bytes_[:-CAPACITY_BYTES].view(np.uint32)
        self._data = bytes_[-CAPACITY_BYTES:]
        self._places = [_reader_word(index) for index in range(num_readers)]
        self._own = None if reader is None else self._places[reader]
        self._place = 0
        """Of a reader: how far it has taken the stream."""

    @staticmethod
    def segment_bytes(num_readers: int) -> int:
        """What the segment takes."""
        return (1 + num_readers) * _LINE_BYTES + CAPACITY_BYTES

    @property
    def path(self) -> str:
        """By which others open the segment."""
        return self._segment.path

    def write(self, plan: Ints, limit_s: float) -> None:
        """Hand a plan to all readers.

        Raises RankLostError if a reader has no room for it and takes nothing for `limit_s`, or if
        the ring has ended.
        """
        length = np.array([plan.nbytes], dtype=np.int64)
        rest = np.concatenate((length, plan)).view(np.uint8)
        while len(rest):
            at = int(self._words[_WRITTEN])
            count = min(len(rest), self._wait_for_room(at, limit_s))
            self._copy(at, rest[:count], is_write=True)
            self._publish(_WRITTEN, at + count)
            rest = rest[count:]

    def read(self) -> Ints | None:
        """Wait for the next plan, however long; None after the last one of a ring that ended."""
        length = self._take(8)
        plan = None if length is None else self._take(int(length.view(np.int64)[0]))
        self._make_room()
        return None if plan is None else plan.view(np.int64)

    def end(self) -> None:
        """Have all that read or write, now or later, stop. From any thread."""
        self._publish(_ENDED, 1)
        for word in (_WRITTEN, *self._places):
            self._futex.wake(self._address(word))

    def close(self) -> None:
        """Let go of the segment; nobody may read or write here any more."""
        del self._words, self._data
        self._segment.close()

    def _take(self, count: int) -> Bytes | None:
        """The next bytes for this reader, whose room is not given to the writer yet."""
        taken = np.empty(count, dtype=np.uint8)
        done = 0
        while done < count:
            ready = (int(self._words[_WRITTEN]) - self._place) % _WRAP
            if ready == 0:
                self._make_room()
                ready = (self._wait_beyond(self._place) - self._place) % _WRAP
            if ready == 0:
                return None
            part = taken[done : done + ready]
            self._copy(self._place, part, is_write=False)
            self._place = (self._place + len(part)) % _WRAP
            done += len(part)
        return taken

    def _make_room(self) -> None:
        """Let the writer overwrite what has been taken."""
        assert self._own is not None, "only readers read"
        if self._words[self._own] != self._place:
            self._publish(self._own, self._place)

    def _wait_beyond(self, at: int) -> int:
        """How far the writer is, once it is further than `at`; `at` if the ring has ended."""
        for _ in range(_SPINS):
            if self._words[_WRITTEN] != at:
                return int(self._words[_WRITTEN])
        while self._words[_WRITTEN] == at and not self._words[_ENDED]:
            self._futex.wait(self._address(_WRITTEN), at, _NAP_S)
        return int(self._words[_WRITTEN])

    def _wait_for_room(self, at: int, limit_s: float) -> int:
        """Bytes that may be written now, at least one."""
        room = CAPACITY_BYTES
        end = monotonic() + limit_s
        for number, word in enumerate(self._places):
            while (ahead := (at - int(self._words[word])) % _WRAP) == CAPACITY_BYTES:
                if self._words[_ENDED]:
                    break
                if monotonic() > end:
                    raise RankLostError(f"reader {number} took no plan for {limit_s:g} s")
                self._futex.wait(self._address(word), int(self._words[word]), _NAP_S)
            room = min(room, CAPACITY_BYTES - ahead)
        if self._words[_ENDED]:
            raise RankLostError("the ranks have been told to stop")
        return room

    def _copy(self, at: int, part: Bytes, *, is_write: bool) -> None:
        """Move bytes into or out of the ring, around its end."""
        first = at % CAPACITY_BYTES
        straight = min(len(part), CAPACITY_BYTES - first)
        pieces = (
            (self._data[first : first + straight], part[:straight]),
            (self._data[: len(part) - straight], part[straight:]),
        )
        for ring, outside in pieces:
            if is_write:
                ring[:] = outside
            else:
                outside[:] = ring

    def _publish(self, word: int, value: int) -> None:
        self._words[word] = value % _WRAP
        self._futex.wake(self._address(word))

    def _address(self, word: int) -> int:
        return self._base + word * _WORD_BYTES


def _reader_word(reader: int) -> int:
    return (1 + reader) * _LINE_BYTES // _WORD_BYTES
