"""Which replica of a model holds how much of a prompt, as far as a router knows."""

import time
from collections.abc import Callable, Mapping, Sequence, Set
from typing import NamedTuple

from cluster.prefix.bisection import bisected_depths
from cluster.prefix.events import joined
from cluster.prefix.prefix_index import PrefixIndex
from cluster.prefix.speculation import Speculation


class Held(NamedTuple):
    """How many of a prompt's first blocks replicas hold; those that hold none are left out."""

    depths: Mapping[str, int]
    """In all, those included that they are about to hold."""
    lowered: Mapping[str, int]
    """Of these, the blocks that are in host memory only, which come after the others."""


class PrefixDirectory:
    """What replicas have said, and what is expected of them. Replicas go by their member names.

    A `PrefixFollower` keeps it up to date; policies ask it and tell it of what they decide.
    """

    def __init__(self, max_blocks: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`max_blocks` bounds what is known by replicas' word, rounded up to a power of two."""
        self._index = PrefixIndex(max_blocks)
        self._speculation = Speculation(clock)
        self._slots: dict[str, int] = {}
        self._members: dict[int, str] = {}
        self._devices: dict[str, int] = {}
        """Slots that hold what is on devices, of replicas that have spoken of host memory too."""
        self._known: set[str] = set()

    @property
    def num_blocks(self) -> int:
        """Blocks that replicas are known to hold; one that several hold counts once."""
        return self._index.num_blocks

    @property
    def num_expected(self) -> int:
        """Blocks of prompts just sent, of which replicas have not spoken since, each as often as
        there are such replicas."""
        self._speculation.expire()
        return self._speculation.num_entries

    @property
    def nbytes(self) -> int:
        """Memory of the table of blocks."""
        return self._index.nbytes

    def held(self, hashes: Sequence[bytes]) -> Held:
        """How many of the first of these blocks each replica holds, and where."""
        by_slot = self._by_slot(hashes)
        members, devices = self._members, self._devices
        depths = {members[slot]: depth for slot, depth in by_slot.items() if slot in members}
        lowered: dict[str, int] = {}
        for member in depths.keys() & devices.keys() if devices else ():
            if num_lowered := depths[member] - by_slot.get(devices[member], 0):
                lowered[member] = num_lowered
        depths.update(self._speculation.depths(hashes, depths))
        return Held(depths, lowered)

    def expect(self, hashes: Sequence[bytes], member: str, depth: int | None = None) -> None:
        """A prompt with these blocks was sent to the replica, which holds the first `depth` of them
        (if that is not told: by its own word) and will hold them all soon.

        Forgotten after two seconds, by when the replica has told what became of it.
        """
        if depth is None:
            depth = self._by_slot(hashes).get(self._slots.get(member, -1), 0)
        self._speculation.expect(hashes, member, depth)

    @property
    def known(self) -> Set[str]:
        """Replicas of which all is known that they hold, up to what is on its way here.

        Of others it may be too little, or what is no more, or only what is expected.
        """
        return self._known

    def store(self, member: str, hashes: bytes) -> None:
        """The replica says that its device holds these blocks: 16 bytes each, parents before
        children."""
        self._index.store(self._slot(member), hashes)
        if (device := self._devices.get(member)) is not None:
            self._index.store(device, hashes)
        self._speculation.settle(hashes, member)

    def lower(self, member: str, hashes: bytes) -> None:
        """The replica says that it holds these blocks in host memory, and not on its device."""
        if not hashes:
            return
        self._index.store(self._slot(member), hashes)
        if member not in self._devices:
            self._devices[member] = self._index.copy_slot(self._slot(member))
        self._index.remove(self._devices[member], hashes)
        self._speculation.settle(hashes, member)

    def remove(self, member: str, hashes: bytes) -> None:
        """The replica says that it does not hold these blocks any more."""
        for slot in self._slots_of(member):
            self._index.remove(slot, hashes)
        self._speculation.settle(hashes, member)

    def clear(self, member: str) -> None:
        """The replica says that it holds nothing any more."""
        for slot in self._slots_of(member):
            self._index.clear(slot)
        self._speculation.forget(member)

    def trust(self, member: str) -> None:
        """What is known of the replica is all there is."""
        self._known.add(member)

    def doubt(self, member: str) -> None:
        """What is known of the replica may be wrong."""
        self._known.discard(member)

    def forget(self, member: str) -> None:
        """The replica is gone."""
        self.doubt(member)
        self._speculation.forget(member)
        for slot in self._slots_of(member):
            self._members.pop(slot, None)
            self._index.close_slot(slot)
        self._slots.pop(member, None)
        self._devices.pop(member, None)

    def _slot(self, member: str) -> int:
        """The slot that holds what the replica does, wherever."""
        if member not in self._slots:
            slot = self._index.open_slot()
            self._slots[member], self._members[slot] = slot, member
        return self._slots[member]

    def _slots_of(self, member: str) -> list[int]:
        return [slots[member] for slots in (self._slots, self._devices) if member in slots]

    def _by_slot(self, hashes: Sequence[bytes]) -> Mapping[int, int]:
        """How many of the first of these blocks each slot holds, by replicas' word."""
        if self._index.is_largest:
            # Some in the middle may have been displaced; those asked for are to stay.
            return self._index.depths(joined(hashes))
        return bisected_depths(hashes, self._index.holders)
