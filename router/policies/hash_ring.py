"""Consistent hashing with bounded loads."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from math import ceil

from router.policies.policy import C

_POINTS = 64
"""Virtual nodes of each replica: their shares of the ring then differ by about an eighth."""
_BOUND = 1.25
"""Of the mean load: nothing is put where there is more already."""


class HashRing:
    """Gives each key a replica, and few keys another one when replicas come or go.

    Bounded loads after Mirrokni, Thorup and Zadimoghaddam (2018): a key whose replica has more
    than its share goes on around the ring, so that no key makes a replica hot.
    """

    def __init__(self) -> None:
        self._members: frozenset[str] = frozenset()
        self._points: list[int] = []
        self._owners: list[str] = []

    def choose(self, key: bytes, candidates: Sequence[C]) -> C:
        """The first candidate clockwise of `key` that has no more than its share to do."""
        by_name = {candidate.member: candidate for candidate in candidates}
        self._place(frozenset(by_name))
        bound = load_bound(candidates)
        return next(
            candidate
            for candidate in map(by_name.__getitem__, self._clockwise(key))
            if candidate.load.pending_sequences < bound
        )

    def home(self, key: bytes) -> str:
        """The replica that the key goes to unless it has too much to do, of those seen last."""
        return next(self._clockwise(key))

    def _place(self, members: frozenset[str]) -> None:
        if members != self._members:
            nodes = sorted((_point(m.encode(), i), m) for m in members for i in range(_POINTS))
            self._points = [point for point, _ in nodes]
            self._owners = [owner for _, owner in nodes]
            self._members = members

    def _clockwise(self, key: bytes) -> Iterator[str]:
        """All replicas, each once, in the order in which the key meets them."""
        start = bisect_left(self._points, _point(key, 0))
        yield from dict.fromkeys(self._owners[start:] + self._owners[:start])


def load_bound(candidates: Sequence[C]) -> int:
    """Sequences that a candidate may have, one more included; there is always one below it."""
    total = sum(candidate.load.pending_sequences for candidate in candidates)
    return ceil(_BOUND * (total + 1) / len(candidates))


def _point(name: bytes, number: int) -> int:
    digest = blake2b(name, digest_size=8, salt=number.to_bytes(2, "little")).digest()
    return int.from_bytes(digest, "little")
