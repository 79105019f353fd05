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
_KEY = b"trunkline block hash v1"


def root_hash(
    model_fingerprint: str, block_size: int, *, adapter: str = "", salt: bytes = b""
) -> bytes:
    """The hash that the first block of every prompt is chained to (16 bytes)."""
    hasher = blake2b(digest_size=HASH_SIZE_BYTES, key=_KEY)
    for part in (model_fingerprint.encode(), adapter.encode(), salt, str(block_size).encode()):
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.digest()


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The hash (16 bytes) of one full block of `token_ids` that follows `parent`.

    Raises OverflowError if a token id is not in [0, 2**32).
    """
    tokens = array("I", token_ids)
    if sys.byteorder == "big":
        tokens.byteswap()
    return blake2b(parent + tokens.tobytes(), digest_size=HASH_SIZE_BYTES, key=_KEY).digest()


def block_hashes(root: bytes, token_ids: Sequence[int], block_size: int) -> list[bytes]:
    """The hashes of all full blocks of `token_ids`, in order; a partial last block has none."""
    hashes = []
    parent = root
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        parent = block_hash(parent, token_ids[start : start + block_size])
        hashes.append(parent)
    return hashes
