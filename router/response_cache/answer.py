"""Answers as they are kept: a header of fixed size, then an `Answer` of the internal contract.

The header has a hash over the key and the message. So a value that was cut short, changed, written
by another version or stored under another key is told from one that was written for it.
"""

import struct
from hashlib import blake2b
from typing import Final

from google.protobuf.message import DecodeError
from trunkline.internal.v1 import answer_pb2 as internal
from trunkline.v1 import inference_pb2 as pb

_HEADER: Final = struct.Struct("<4sH16s")
_MAGIC: Final = b"TLAN"
_VERSION: Final = 1
_CHUNK_TOKENS: Final = 16
"""Tokens of one delta of a kept answer, of which a fresh one has often one each."""


class BrokenAnswerError(ValueError):
    """A stored value is not what was written."""


def seal(key: bytes, answer: internal.Answer) -> bytes:
    """The value to store an answer under `key` as."""
    payload = answer.SerializeToString()
    return _HEADER.pack(_MAGIC, _VERSION, _checksum(key, payload)) + payload


def unseal(key: bytes, value: bytes) -> internal.Answer:
    """The answer in a value that was found under `key`. Raises BrokenAnswerError."""
    if len(value) < _HEADER.size:
        raise BrokenAnswerError(f"{len(value)} bytes, expected {_HEADER.size} at least")
    magic, version, checksum = _HEADER.unpack_from(value)
    if (magic, version) != (_MAGIC, _VERSION):
        raise BrokenAnswerError(
            f"header of {magic!r}, version {version}; expected {_MAGIC!r}, {_VERSION}"
        )
    payload = value[_HEADER.size :]
    if _checksum(key, payload) != checksum:
        raise BrokenAnswerError("its checksum is wrong")
    try:
        return internal.Answer.FromString(payload)
    except DecodeError as error:
        raise BrokenAnswerError(str(error)) from error


class Recording:
    """An answer as it goes by, until it is whole or larger than `max_bytes`."""

    def __init__(self, n: int, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._unfinished = set(range(n))
        self._has_failed = False
        self._is_second_hand = False
        self._answer = internal.Answer()
        self._open: dict[int, list[pb.Delta]] = {}

    @property
    def is_too_large(self) -> bool:
        """Whether it was given up for its size."""
        return self._num_bytes > self._max_bytes

    def add(self, message: pb.GenerateResponse | pb.ChatResponse) -> None:
        """The next message of the answer."""
        content = message if message.prompt_logprobs else message.delta
        self._num_bytes += content.ByteSize()
        if self.is_too_large:
            self._answer.Clear()
            self._open.clear()
            return
        self._answer.prompt_logprobs.extend(message.prompt_logprobs)
        self._is_second_hand |= message.cache_source != pb.CACHE_SOURCE_UNSPECIFIED
        if message.HasField("delta"):
            self._add(message.delta)

    def whole(self) -> internal.Answer | None:
        """The answer, if it is one that may be given again: all of it, without a failure, and made
        by a replica for this request."""
        if self.is_too_large or self._unfinished or self._has_failed or self._is_second_hand:
            return None
        return self._answer

    def _add(self, delta: pb.Delta) -> None:
        chunk = self._open.setdefault(delta.index, [])
        chunk.append(delta)
        if delta.finish_reason:
            self._unfinished.discard(delta.index)
            self._has_failed |= delta.finish_reason == pb.FINISH_REASON_ERROR
        if delta.finish_reason or sum(len(d.token_ids) for d in chunk) >= _CHUNK_TOKENS:
            _join(self._open.pop(delta.index), self._answer.deltas.add())


def _join(deltas: list[pb.Delta], joined: pb.Delta) -> None:
    """Several deltas of one sample as one."""
    for delta in deltas:
        joined.MergeFrom(delta)
    joined.text = "".join(delta.text for delta in deltas)


def _checksum(key: bytes, payload: bytes) -> bytes:
    return blake2b(payload, key=key, digest_size=16).digest()
