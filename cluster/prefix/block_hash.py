"""Chained block hashes: the one name that routers, engines and Redis give to a block of tokens.

``h_0 = H(model fingerprint, adapter, tenant salt, block size)`` and ``h_i = H(h_{i-1}, tokens_i)``
with H a keyed 128-bit BLAKE2b, so that equal hashes mean equal token prefixes under one root and
tenants with different salts never meet.
"""

import sys
from array import array
from collections.abc import Sequence
from hashlib import blake2b

HASH_SIZE_BYTES = 16
_KEYED = blake2b(digest_size=HASH_SIZE_BYTES, key=b"trunkline block hash v1")
"""Copied for each hash: a new keyed state costs more than the hash itself."""
_TOKEN_SIZE_BYTES = 4


def root_hash(
    model_fingerprint: str, block_size: int, *, adapter: str = "", salt: bytes = b""
) -> bytes:
    """The hash that the first block of every prompt is chained to (16 bytes)."""
    hasher = _KEYED.copy()
    for part in (model_fingerprint.encode(), adapter.encode(), salt, str(block_size).encode()):
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.digest()


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The hash (16 bytes) of one full block of `token_ids` that follows `parent`.

    Raises OverflowError if a token id is not in [0, 2**32).
    """
    hasher = _KEYED.copy()
    hasher.update(parent + _token_bytes(token_ids))
    return hasher.digest()


def block_hashes(root: bytes, token_ids: Sequence[int], block_size: int) -> list[bytes]:
    """The hashes of all full blocks of `token_ids`, in order; a partial last block has none.

    Raises OverflowError if a token id is not in [0, 2**32).
    """
    tokens = _token_bytes(token_ids)
    length = block_size * _TOKEN_SIZE_BYTES
    hashes = []
    parent, new = root, _KEYED.copy
    for start in range(0, len(tokens) - length + 1, length):
        hasher = new()
        hasher.update(parent + tokens[start : start + length])
        parent = hasher.digest()
        hashes.append(parent)
    return hashes


def _token_bytes(token_ids: Sequence[int]) -> bytes:
    """`token_ids` as they are hashed: 32 bits each, little-endian."""
    tokens = array("I", token_ids)
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens.tobytes()
