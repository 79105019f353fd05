"""How a block's keys and values stand in a byte store: a header of fixed size, then raw bytes.

The header has a SHA-256 over the key and the bytes. So a value that was cut short, changed, written
by another version or stored under another key is told from one that was written for it.
"""

import struct
from hashlib import sha256

_HEADER = struct.Struct("<4sHxxQ32s")
_MAGIC = b"TLKV"
_VERSION = 1


class CorruptValueError(ValueError):
    """A stored value is not what was written."""


def seal(key: bytes, payload: memoryview) -> bytes:
    """The value to store `payload` under `key` as."""
    header = _HEADER.pack(_MAGIC, _VERSION, payload.nbytes, _checksum(key, payload))
    return b"".join((header, payload))


def unseal(key: bytes, value: bytes, num_bytes: int) -> memoryview:
    """The `num_bytes` of payload in a value that was found under `key`, a view of them.

    Raises CorruptValueError, which says what is wrong.
    """
    view = memoryview(value)
    if len(view) != _HEADER.size + num_bytes:
        raise CorruptValueError(f"{len(view)} bytes, expected {_HEADER.size + num_bytes}")
    magic, version, length, checksum = _HEADER.unpack_from(view)
    if (magic, version, length) != (_MAGIC, _VERSION, num_bytes):
        raise CorruptValueError(
            f"header of {magic!r}, version {version}, {length} bytes; expected {_MAGIC!r}, "
            f"{_VERSION}, {num_bytes}"
        )
    payload = view[_HEADER.size :]
    if _checksum(key, payload) != checksum:
        raise CorruptValueError("its checksum is wrong")
    return payload


def _checksum(key: bytes, payload: memoryview) -> bytes:
    digest = sha256(len(key).to_bytes(8, "little"))
    digest.update(key)
    digest.update(payload)
    return digest.digest()
