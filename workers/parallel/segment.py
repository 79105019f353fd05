"""Memory that processes of one machine share, which leaves nothing behind when they end."""

import ctypes
import mmap
import os
import secrets
from typing import Self

from workers.kernels.cpu_collectives import Memory

_PREFIX = "trunkline-"


class SegmentError(Exception):
    """A segment cannot be made or opened; the message tells its path and why."""


class Segment:
    """A memfd: its creator makes it, others open its path while the creator holds it open.

    `close` ends neither what is being computed in the memory nor recorded calls: it is unmapped
    when the last of these is gone.
    """

    def __init__(self, fd: int, num_bytes: int, path: str) -> None:
        self._fd = fd
        self.path = path
        """By which others open it. Names the memory too, so that nobody opens another one."""
        self._mapping: Memory | None = _map(fd, num_bytes)

    @classmethod
    def create(cls, num_bytes: int) -> Self:
        """A segment of zeros. Raises SegmentError."""
        name = _PREFIX + secrets.token_hex(8)
        try:
            fd = os.memfd_create(name)
        except OSError as error:
            raise SegmentError(f"{name}: {num_bytes} bytes of shared memory: {error}") from error
        try:
            os.ftruncate(fd, num_bytes)
            return cls(fd, num_bytes, f"/proc/{os.getpid()}/fd/{fd}#{name}")
        except (OSError, ValueError) as error:
            os.close(fd)
            raise SegmentError(f"{name}: {num_bytes} bytes of shared memory: {error}") from error

    @classmethod
    def open(cls, path: str, num_bytes: int) -> Self:
        """The segment that another process has made and still holds open.

        Raises SegmentError, also if it is not of that size.
        """
        file, _, name = path.partition("#")
        try:
            fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise SegmentError(
                f"{path}: {error.strerror}; expected a process of this user in the same container"
            ) from error
        try:
            found, size = os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd).st_size
            if found != f"/memfd:{name} (deleted)" or size != num_bytes:
                raise SegmentError(f"{path}: {found} of {size} bytes, expected {num_bytes}")
            return cls(fd, num_bytes, path)
        except (OSError, ValueError) as error:
            os.close(fd)
            raise SegmentError(f"{path}: {error}") from error
        except SegmentError:
            os.close(fd)
            raise

    @property
    def memory(self) -> Memory:
        """The bytes, mapped. ValueError once it is closed."""
        if self._mapping is None:
            raise ValueError(f"{self.path}: closed")
        return self._mapping

    def close(self) -> None:
        """Open it to nobody else, and let go of the memory."""
        if self._mapping is not None:
            os.close(self._fd)
            self._mapping = None


def _map(fd: int, num_bytes: int) -> Memory:
    # The array keeps the mapping, and its own descriptor, until it is gone itself.
    return (ctypes.c_char * num_bytes).from_buffer(mmap.mmap(fd, num_bytes))
