"""What replicas are about to hold: the blocks of prompts that were just sent to them."""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set

from cluster.prefix.bisection import num_common
from cluster.prefix.events import split

VALID_S = 2.0
"""By then a replica has computed a prompt and said so, or it computes something else."""


class _Tail:
    """The blocks of a prompt from `start` on; hashes before it are of no account."""

    __slots__ = ("end", "hashes", "start")

    def __init__(self, hashes: Sequence[bytes], start: int, end: float) -> None:
        self.hashes = hashes
        self.start = start
        self.end = end

    def settle(self, said: Set[bytes]) -> None:
        """Leave out those of its first blocks that are among these, of which its first one is."""
        rest = range(self.start + 1, len(self.hashes))
        self.start += 1 + bisect_left(rest, True, key=lambda i: self.hashes[i] not in said)


class Speculation:
    """Blocks by replica, each until it is `VALID_S` old or the replica has spoken of it.

    A radix tree, in which a prompt's blocks are found by the first one: where the replica is sent
    another that goes on differently, that one's blocks are found by the first that differs. So
    few of a long prompt's hashes are ever asked for.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tails: dict[bytes, dict[str, _Tail]] = {}
        self._due: deque[tuple[str, _Tail]] = deque()

    @property
    def num_entries(self) -> int:
        """Pairs of a block and a replica."""
        by_first = self._tails.values()
        return sum(len(t.hashes) - t.start for tails in by_first for t in tails.values())

    def expect(self, hashes: Sequence[bytes], member: str, depth: int) -> None:
        """The replica, which holds the first `depth` of these blocks, will soon hold them all."""
        self.expire()
        tail = _Tail(hashes, depth, self._clock() + VALID_S)
        # What was expected before ends earlier, and keeps what is beyond this prompt.
        while depth < len(hashes) and (other := self._take(hashes[depth], member)):
            depth = other.start = num_common(other.hashes, hashes, depth + 1)
            self._put(other, member)
        self._put(tail, member)
        self._due.append((member, tail))

    def settle(self, hashes: bytes, member: str) -> None:
        """The replica has said what it does with these blocks: nothing is to be guessed."""
        said = frozenset(split(hashes) if self._tails else ())
        for first in self._tails.keys() & said:
            if tail := self._take(first, member):
                tail.settle(said)
                self._put(tail, member)

    def forget(self, member: str) -> None:
        """Expect nothing of the replica."""
        for first in list(self._tails):
            self._take(first, member)

    def depths(self, hashes: Sequence[bytes], held: Mapping[str, int]) -> dict[str, int]:
        """How far the prompt's first blocks are expected of replicas, of which the first are
        `held`; replicas of which no further ones are expected are left out."""
        depths: dict[str, int] = {}
        now = self._clock()
        for start in {0, *held.values()}:
            for member in self._tails.get(hashes[start], ()) if start < len(hashes) else ():
                known = max(held.get(member, 0), depths.get(member, 0))
                if start <= known < (depth := self._depth(hashes, member, start, now)):
                    depths[member] = depth
        return depths

    def expire(self) -> None:
        """Drop what is too old."""
        now = self._clock()
        while self._due and self._due[0][1].end <= now:
            member, tail = self._due.popleft()
            if tail.start < len(tail.hashes):
                first = tail.hashes[tail.start]
                if self._tails.get(first, {}).get(member) is tail:
                    self._take(first, member)

    def _depth(self, hashes: Sequence[bytes], member: str, start: int, now: float) -> int:
        while start < len(hashes) and (tails := self._tails.get(hashes[start])):
            tail = tails.get(member)
            if tail is None or tail.end <= now:
                break
            start = num_common(tail.hashes, hashes, start + 1)
        return start

    def _put(self, tail: _Tail, member: str) -> None:
        if tail.start < len(tail.hashes):
            self._tails.setdefault(tail.hashes[tail.start], {})[member] = tail

    def _take(self, first: bytes, member: str) -> _Tail | None:
        tails = self._tails.get(first, {})
        tail = tails.pop(member, None)
        if tail and not tails:
            del self._tails[first]
        return tail
