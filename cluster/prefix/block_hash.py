"""Block hashes: the one name that routers, engines and Redis give to a block of tokens.

``h_0 = H(model fingerprint, adapter, tenant salt, block size)`` and ``h_i = H(h_0, tokens_1, ..,
tokens_i)`` with H a keyed 128-bit BLAKE2b, so that equal hashes mean equal token prefixes under one
root and tenants with different salts never meet. One running state reads all tokens once. A block
that nobody asks for costs no more than that, which is a tenth of a hash.
"""

import sys
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from hashlib import blake2b
from typing import overload

HASH_SIZE_BYTES = 16
_KEYED = blake2b(digest_size=HASH_SIZE_BYTES, key=b"trunkline block hash v2")
"""Copied for each root: a new keyed state costs more than that."""
_TOKEN_SIZE_BYTES = 4
_STRIDE = 32
"""Blocks between states that are kept, from which hashes in between are found."""


def root_hash(
    model_fingerprint: str, block_size: int, *, adapter: str = "", salt: bytes = b""
) -> bytes:
    """The hash that all blocks of every prompt begin with (16 bytes)."""
    hasher = _KEYED.copy()
    for part in (model_fingerprint.encode(), adapter.encode(), salt, str(block_size).encode()):
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.digest()


class BlockHasher:
    """Names the blocks of one sequence, in order, as they become full."""

    def __init__(self, root: bytes) -> None:
        self._state = _KEYED.copy()
        self._state.update(root)

    def copy(self) -> "BlockHasher":
        """One that has come as far, for a sequence that begins with the same blocks."""
        other = object.__new__(BlockHasher)
        other._state = self._state.copy()
        return other

    def next(self, token_ids: Sequence[int], block_size: int) -> list[bytes]:
        """The hashes (16 bytes each) of the full blocks that follow; of a partial last block
        nothing is read.

        Raises OverflowError if a token id is not in [0, 2**32).
        """
        return self.read(_token_bytes(token_ids), block_size * _TOKEN_SIZE_BYTES)

    def read(self, tokens: bytes, length: int) -> list[bytes]:
        """As `next`, of tokens as they are hashed, in blocks of so many bytes."""
        starts, digest = range(0, len(tokens) - length + 1, length), self._state.digest
        blocks = [tokens[start : start + length] for start in starts]
        return [digest() for _ in map(self._state.update, blocks)]

    def skip(self, tokens: bytes) -> bytes:
        """The hash of the last of some blocks that follow."""
        self._state.update(tokens)
        return self._state.digest()


def block_hashes(root: bytes, token_ids: Sequence[int], block_size: int) -> list[bytes]:
    """The hashes of all full blocks of `token_ids`, in order; a partial last block has none.

    Raises OverflowError if a token id is not in [0, 2**32).
    """
    return BlockHasher(root).next(token_ids, block_size)


class BlockHashes(Sequence[bytes]):
    """What `block_hashes` gives; beyond the first blocks, of which most are always asked for, each
    hash is computed when it is."""

    __slots__ = ("_depths", "_found", "_hashers", "_length", "_num_blocks", "_tokens")

    def __init__(self, root: bytes, token_ids: Sequence[int], block_size: int) -> None:
        """Raises OverflowError if a token id is not in [0, 2**32)."""
        self._tokens = _token_bytes(token_ids)
        self._length = block_size * _TOKEN_SIZE_BYTES
        self._num_blocks = len(self._tokens) // self._length
        hasher = BlockHasher(root)
        first = hasher.read(self._tokens[: _STRIDE * self._length], self._length)
        self._found: list[bytes | None] = [*first, *[None] * (self._num_blocks - len(first))]
        # What has come so many blocks far, in order.
        self._depths, self._hashers = [len(first)], [hasher]

    def __len__(self) -> int:
        return self._num_blocks

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._num_blocks))]
        return self._found[index] or self._find(range(self._num_blocks)[index])

    def _find(self, index: int) -> bytes:
        place, length = bisect_right(self._depths, index), self._length
        hasher, depth = self._hashers[place - 1], self._depths[place - 1]
        while (found := self._found[index]) is None:
            hasher, start = hasher.copy(), depth * length
            depth = min(index + 1, depth - depth % _STRIDE + _STRIDE)
            self._found[depth - 1] = hasher.skip(self._tokens[start : depth * length])
            self._depths.insert(place, depth)
            self._hashers.insert(place, hasher)
            place += 1
        return found


def _token_bytes(token_ids: Sequence[int]) -> bytes:
    """`token_ids` as they are hashed: 32 bits each, little-endian."""
    tokens = array("I", token_ids)
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens.tobytes()
