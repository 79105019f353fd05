"""What replicas are about to hold: the blocks of prompts that were just sent to them."""

import time
from collections import deque
from collections.abc import Callable, Iterable, KeysView, Mapping, Sequence
from itertools import islice

VALID_S = 2.0
"""By then a replica has computed a prompt and said so, or it computes something else."""


class Speculation:
    """Blocks by replica, each until it is `VALID_S` old or the replica has spoken of it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: dict[str, dict[bytes, float]] = {}
        self._due: deque[tuple[float, str, Sequence[bytes]]] = deque()

    @property
    def num_entries(self) -> int:
        """Pairs of a block and a replica."""
        return sum(len(ends) for ends in self._ends.values())

    @property
    def members(self) -> KeysView[str]:
        """The replicas that something is expected of."""
        return self._ends.keys()

    def expect(self, hashes: Sequence[bytes], member: str) -> None:
        """The replica will soon hold these blocks."""
        self.expire()
        if hashes:
            end = self._clock() + VALID_S
            self._ends.setdefault(member, {}).update(dict.fromkeys(hashes, end))
            self._due.append((end, member, hashes))

    def settle(self, hashes: Iterable[bytes], member: str) -> None:
        """The replica has said what it does with these blocks: nothing is to be guessed."""
        if ends := self._ends.get(member):
            for block_hash in hashes:
                ends.pop(block_hash, None)
            self._tidy(member)

    def forget(self, member: str) -> None:
        """Expect nothing of the replica."""
        self._ends.pop(member, None)

    def depths(self, hashes: Sequence[bytes], held: Mapping[str, int]) -> dict[str, int]:
        """How far the prompt's first blocks are expected of replicas, of which the first are
        `held`; replicas of which no further ones are expected are left out."""
        depths, now = {}, self._clock()
        for member, ends in self._ends.items():
            start = held.get(member, 0)
            if start < len(hashes) and hashes[start] in ends:
                depth = self._depth(hashes, ends, start, now)
                if depth > start:
                    depths[member] = depth
        return depths

    def _depth(
        self, hashes: Sequence[bytes], ends: Mapping[bytes, float], start: int, now: float
    ) -> int:
        for depth, block_hash in enumerate(islice(hashes, start, None), start):
            if ends.get(block_hash, now) <= now:
                return depth
        return len(hashes)

    def expire(self) -> None:
        """Drop what is too old."""
        now = self._clock()
        while self._due and self._due[0][0] <= now:
            end, member, hashes = self._due.popleft()
            if ends := self._ends.get(member):
                # What was expected again since then has a later end.
                for block_hash in [block for block in hashes if ends.get(block) == end]:
                    ends.pop(block_hash, None)
                self._tidy(member)

    def _tidy(self, member: str) -> None:
        if not self._ends[member]:
            del self._ends[member]
