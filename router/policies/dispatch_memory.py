"""Where prompts were sent, for when replicas do not say what they hold."""

from collections import OrderedDict
from collections.abc import Sequence

_MAX_BLOCKS = 65_536
_MAX_MEMBERS = 4
"""Replicas remembered for one block, the latest ones."""
_DEPTHS = tuple(sorted({2**k for k in range(24)} | {3 * 2**k for k in range(23)}))
"""Depths at which blocks are remembered: all of them would cost more than they gain."""


class DispatchMemory:
    """A few blocks of every prompt sent, and to whom; the least recently used are forgotten."""

    def __init__(self, max_blocks: int = _MAX_BLOCKS) -> None:
        self._max_blocks = max_blocks
        self._members = OrderedDict[bytes, tuple[str, ...]]()

    def __len__(self) -> int:
        return len(self._members)

    def note(self, hashes: Sequence[bytes], member: str) -> None:
        """A prompt of these blocks is sent to the replica."""
        for depth in _DEPTHS:
            if depth > len(hashes):
                break
            name = hashes[depth - 1]
            members = self._members.setdefault(name, (member,))
            if members[0] != member:
                others = [m for m in members if m != member]
                self._members[name] = (member, *others[: _MAX_MEMBERS - 1])
            self._members.move_to_end(name)
        while len(self._members) > self._max_blocks:
            self._members.popitem(last=False)

    def depths(self, hashes: Sequence[bytes]) -> dict[str, int]:
        """At least so many of the first of these blocks were sent to each replica.

        Replicas that were sent none are left out; a depth is at least two thirds of the real one.
        """
        depths: dict[str, int] = {}
        for depth in _DEPTHS:
            if depth > len(hashes) or (members := self._members.get(hashes[depth - 1])) is None:
                break
            depths.update(dict.fromkeys(members, depth))
        return depths
