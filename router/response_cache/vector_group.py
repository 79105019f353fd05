"""Embeddings that a router has at hand."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np

from router.embedder import Floats

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float32]]
_VALUE: Final = np.dtype("<f4")
_GROUP_BYTES: Final = 1024
"""What a group takes beside its vectors, about."""


class Neighbour(NamedTuple):
    """What comes nearest."""

    name: bytes
    similarity: float
    """Cosine of the angle between the two."""


class VectorGroup:
    """A copy of one group of the store: vectors of length 1, compared by one matrix product."""

    def __init__(self, num_values: int) -> None:
        """`num_values` is how many its vectors have; others are left out."""
        self.version = b""
        self._names: list[bytes] = []
        self._matrix: Matrix = np.empty((0, num_values), dtype=np.float32)

    @property
    def num_bytes(self) -> int:
        """Size of the vectors."""
        return self._matrix.nbytes

    def missing(self, names: Iterable[bytes]) -> list[bytes]:
        """Those of the names whose vectors are not here."""
        known = set(self._names)
        return [name for name in names if name not in known]

    def update(
        self, version: bytes, names: Iterable[bytes], added: dict[bytes, bytes | None]
    ) -> None:
        """Be as the store was at `version`: with `names`, of which `added` has what was missing."""
        wanted = set(names)
        kept = [row for row, name in enumerate(self._names) if name in wanted]
        # Another request may have brought some in the meantime.
        missing = self.missing(added)
        new = {name: self._parse(added[name]) for name in missing}
        rows = {name: vector for name, vector in new.items() if vector is not None}
        self._matrix = np.concatenate([self._matrix[kept], *(v[None] for v in rows.values())])
        self._names = [*(self._names[row] for row in kept), *rows]
        self.version = version

    def nearest(self, vector: Floats) -> Neighbour | None:
        """The nearest to `vector`, of length 1; None if there is nothing to compare it with."""
        if not self._names or len(vector) != self._matrix.shape[1]:
            return None
        similarities = self._matrix @ vector
        best = int(similarities.argmax())
        return Neighbour(self._names[best], float(similarities[best]))

    def _parse(self, value: bytes | None) -> Floats | None:
        if value is None or len(value) != self._matrix.shape[1] * _VALUE.itemsize:
            return None
        vector = np.frombuffer(value, _VALUE).astype(np.float32)
        return vector if np.isfinite(vector).all() else None


def to_bytes(vector: Floats) -> bytes:
    """A vector as it is stored."""
    return vector.astype(_VALUE).tobytes()


class VectorGroups:
    """The groups used last, as many as `max_bytes` hold, the one in use always."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._groups: OrderedDict[str, VectorGroup] = OrderedDict()

    def of(self, name: str, num_values: int) -> VectorGroup:
        """The copy of a group, empty if it is new here."""
        group = self._groups.setdefault(name, VectorGroup(num_values))
        self._groups.move_to_end(name)
        return group

    def trim(self) -> None:
        """Forget groups, the one not used for longest first, until the others are small enough."""
        sizes = [group.num_bytes + _GROUP_BYTES for group in self._groups.values()]
        total = sum(sizes)
        for size in sizes[:-1]:
            if total <= self._max_bytes:
                return
            self._groups.popitem(last=False)
            total -= size
