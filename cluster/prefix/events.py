"""What becomes of a replica's cached blocks: as its engine says it, and as it stands in Redis."""

from collections.abc import Iterable, Mapping
from enum import Enum, auto
from typing import NamedTuple

from cluster.prefix.block_hash import HASH_SIZE_BYTES


class CacheChange(Enum):
    """What has happened to blocks of an engine's cache."""

    STORED = auto()
    """They can be found on the device now."""
    LOWERED = auto()
    """They can be found in host memory, and not on the device any more."""
    REMOVED = auto()
    """They cannot be found any more."""
    CLEARED = auto()
    """None can be found any more."""


class CacheEvent(NamedTuple):
    """One change to some blocks, of which no other event tells in between."""

    change: CacheChange
    hashes: list[bytes]
    """Parents before children where they are stored; none with CLEARED."""


class CacheEvents:
    """Changes in the order they came, those of one kind that follow each other in one event."""

    def __init__(self) -> None:
        self._events: list[CacheEvent] = []

    def note(self, change: CacheChange, block_hash: bytes) -> None:
        """A block has changed."""
        if self._events and self._events[-1].change is change:
            self._events[-1].hashes.append(block_hash)
        else:
            self._events.append(CacheEvent(change, [block_hash]))

    def note_cleared(self) -> None:
        """The cache is empty now: what was noted before does not matter any more."""
        self._events = [CacheEvent(CacheChange.CLEARED, [])]

    def take(self) -> list[CacheEvent]:
        """What has been noted since the last time."""
        events, self._events = self._events, []
        return events


class UpdateError(Exception):
    """What stands in a replica's stream is no update."""


class Update(NamedTuple):
    """One entry of a replica's stream: what became of its blocks in one transaction.

    Hashes are joined, 16 bytes each; no block is in more than one of these.
    """

    sequence_number: int
    """One more than the entry's before it, from 1 on for each incarnation of a replica."""
    stored: bytes = b""
    lowered: bytes = b""
    removed: bytes = b""
    cleared: bool = False
    """Nothing of what was cached before is cached now; applies before the rest."""
    rewritten: bool = False
    """The replica's sets of blocks were written anew, and are to be read anew."""

    def fields(self) -> dict[bytes, bytes]:
        """The entry's fields; its id is the sequence number."""
        found = {_STORED: self.stored, _LOWERED: self.lowered, _REMOVED: self.removed}
        flags = {_CLEARED: self.cleared, _REWRITTEN: self.rewritten}
        return {name: blocks for name, blocks in found.items() if blocks} | {
            name: b"1" for name, is_set in flags.items() if is_set
        }

    @classmethod
    def from_entry(cls, entry_id: bytes, fields: Mapping[bytes, bytes]) -> "Update":
        """The update of a stream's entry. Raises UpdateError if it is none."""
        number, _, _ = entry_id.partition(b"-")
        stored, lowered, removed = (fields.get(name, b"") for name in (_STORED, _LOWERED, _REMOVED))
        for name, blocks in ("stored", stored), ("lowered", lowered), ("removed", removed):
            if len(blocks) % HASH_SIZE_BYTES:
                raise UpdateError(f"{name}: got {len(blocks)} bytes, expected a multiple of 16")
        return cls(int(number), stored, lowered, removed, _CLEARED in fields, _REWRITTEN in fields)


_STORED, _LOWERED, _REMOVED = b"stored", b"lowered", b"removed"
_CLEARED, _REWRITTEN = b"cleared", b"rewritten"


class PrefixKeys(NamedTuple):
    """Where one incarnation of a replica writes what it holds."""

    stream: str
    """Updates, the newest ones."""
    resident: str
    """The set of hashes of the blocks on its device."""
    lowered: str
    """The set of those that it has in host memory only."""
    number: str
    """The last update's sequence number."""

    @classmethod
    def of(cls, namespace: str, member: str) -> "PrefixKeys":
        """Those of the replica `member`."""
        kinds = ("blocks", "resident", "lowered", "blocks-number")
        return cls(*(f"{namespace}:{kind}:{member}" for kind in kinds))


def joined(hashes: Iterable[bytes]) -> bytes:
    """Hashes as they stand in updates."""
    return b"".join(hashes)


def split(hashes: bytes) -> list[bytes]:
    """The hashes that were joined."""
    return [hashes[i : i + HASH_SIZE_BYTES] for i in range(0, len(hashes), HASH_SIZE_BYTES)]
