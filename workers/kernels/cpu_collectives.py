"""Exchange between processes of one machine, by the CPU kernels on memory that they share."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch

from workers.kernels.arguments import ROW_DTYPES, check_tensor
from workers.kernels.library import Library, dtype_code

MAX_RANKS = 64
"""Of a group."""

MIN_CAPACITY = 1024
"""Bytes of the smallest buffer: a piece of an all_to_all has its counts before it."""

_ALIGNMENT = 64

Memory = ctypes.Array[ctypes.c_char]
"""A mapped segment, which is unmapped with the last reference to it."""


class Failure(NamedTuple):
    """Why a segment can be used no more."""

    reason: str
    """`late`, `aborted` or `disagreed`."""
    rank: int
    """Whom it is about, in a group; in a mailbox 0 is the sender, 1 the receiver."""


_REASONS = ("none", "late", "aborted", "disagreed")


@dataclass(frozen=True, slots=True)
class Seat:
    """One rank's place in the segment of a group. Raises ValueError, naming the field."""

    memory: Memory
    """Of `group_bytes`, zeros at first."""
    rank: int
    size: int
    capacity: int
    """Bytes of a buffer; larger messages go in pieces."""
    limit_s: float
    """The longest wait for another rank."""

    def __post_init__(self) -> None:
        if not 0 < self.size <= MAX_RANKS:
            raise ValueError(f"size: {self.size}, expected 1 to {MAX_RANKS}")
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank: {self.rank}, expected 0 to {self.size - 1}")
        _check_capacity(self.capacity)


@dataclass(frozen=True, slots=True)
class Mailbox:
    """A one-way pipe in a segment. Raises ValueError, naming the field."""

    memory: Memory
    """Of `mailbox_bytes`, zeros at first."""
    num_slots: int
    """Messages that the sender may run ahead by; a power of two."""
    capacity: int
    """Bytes of a slot; larger messages take several."""
    limit_s: float
    """The longest wait for the other end."""

    def __post_init__(self) -> None:
        if self.num_slots < 1 or self.num_slots & (self.num_slots - 1):
            raise ValueError(f"num_slots: {self.num_slots}, expected a power of two")
        _check_capacity(self.capacity)


class _Seat(ctypes.Structure):
    _fields_ = (
        ("segment", ctypes.c_void_p),
        ("capacity", ctypes.c_int64),
        ("limit_ns", ctypes.c_int64),
        ("rank", ctypes.c_int32),
        ("size", ctypes.c_int32),
    )


class _AllReduce(ctypes.Structure):
    _fields_ = (
        ("seat", _Seat),
        ("x", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
    )


class _AllGather(ctypes.Structure):
    _fields_ = (
        ("seat", _Seat),
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("num_bytes", ctypes.c_int64),
    )


class _AllToAll(ctypes.Structure):
    _fields_ = (
        ("seat", _Seat),
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("out_counts", ctypes.c_void_p),
        ("row_bytes", ctypes.c_int64),
    )


class _Mailbox(ctypes.Structure):
    _fields_ = (
        ("segment", ctypes.c_void_p),
        ("capacity", ctypes.c_int64),
        ("limit_ns", ctypes.c_int64),
        ("num_slots", ctypes.c_uint32),
        ("message", ctypes.c_void_p),
        ("num_bytes", ctypes.c_int64),
    )


class CpuCollectives:
    """The exchange of groups and mailboxes.

    A call that fails returns, and so does each one after it in the same segment: `failure` tells.
    It fails if a rank is not there within the limit, if the segment is aborted, or if ranks call
    different things. Calls are recorded like other kernels. Methods raise TypeError or ValueError,
    naming the argument, if a dtype or shape is not as said.
    """

    def __init__(self, library: Library) -> None:
        self._all_reduce = library.kernel("all_reduce", _AllReduce)
        self._all_gather = library.kernel("all_gather", _AllGather)
        self._all_to_all = library.kernel("all_to_all", _AllToAll)
        self._send = library.kernel("send", _Mailbox)
        self._receive = library.kernel("receive", _Mailbox)
        number, size = ctypes.c_int32, ctypes.c_int64
        self._group_bytes = library.function("group_bytes", size, number, size)
        self._mailbox_bytes = library.function("mailbox_bytes", size, number, size)
        self._abort = library.function("abort_segment", None, ctypes.c_void_p)

    def group_bytes(self, size: int, capacity: int) -> int:
        """Of the segment of a group of `size` ranks."""
        num_bytes: int = self._group_bytes(size, capacity)
        return num_bytes

    def mailbox_bytes(self, num_slots: int, capacity: int) -> int:
        """Of the segment of a mailbox."""
        num_bytes: int = self._mailbox_bytes(num_slots, capacity)
        return num_bytes

    def all_reduce(self, seat: Seat, x: torch.Tensor) -> None:
        """Replace x, float32 or bfloat16, by its sum over all ranks.

        Summed in float32 in the order of ranks and rounded once, so all have the same bits.
        """
        if x.dtype not in ROW_DTYPES:
            raise TypeError(f"x: {x.dtype}, expected one of {ROW_DTYPES}")
        _check_contiguous("x", x)
        args = _AllReduce(_seat(seat), x.data_ptr(), x.numel(), dtype_code(x.dtype))
        self._all_reduce(args, seat, x)

    def all_gather(self, seat: Seat, x: torch.Tensor, out: torch.Tensor) -> None:
        """out [size, *x.shape]: every rank's x, of any dtype, in order."""
        _check_contiguous("x", x)
        check_tensor("out", out, x.dtype, (seat.size, *x.shape))
        args = _AllGather(_seat(seat), x.data_ptr(), out.data_ptr(), x.numel() * x.itemsize)
        self._all_gather(args, seat, x, out)

    def all_to_all(
        self,
        seat: Seat,
        x: torch.Tensor,
        counts: Sequence[int],
        out: torch.Tensor,
        out_counts: Sequence[int],
    ) -> None:
        """Rows of x [sum(counts), ...] to all ranks, and theirs into out [sum(out_counts), ...].

        Of any dtype. A recorded call keeps its counts.
        """
        for name, rows in (("counts", counts), ("out_counts", out_counts)):
            if len(rows) != seat.size or min(rows) < 0:
                raise ValueError(f"{name}: {list(rows)}, expected {seat.size} numbers of rows")
        check_tensor("x", x, x.dtype, (sum(counts), *x.shape[1:]))
        check_tensor("out", out, x.dtype, (sum(out_counts), *x.shape[1:]))
        numbers = ctypes.c_int64 * seat.size
        sent, received = numbers(*counts), numbers(*out_counts)
        args = _AllToAll(
            _seat(seat),
            x.data_ptr(),
            out.data_ptr(),
            ctypes.addressof(sent),
            ctypes.addressof(received),
            x.itemsize * prod(x.shape[1:]),
        )
        self._all_to_all(args, seat, x, out, sent, received)

    def send(self, mailbox: Mailbox, x: torch.Tensor) -> None:
        """Hand over x, of any dtype, which may change from then on."""
        _check_contiguous("x", x)
        self._send(_mailbox(mailbox, x), mailbox, x)

    def receive(self, mailbox: Mailbox, out: torch.Tensor) -> None:
        """Wait for the next message, of as many bytes as out has."""
        _check_contiguous("out", out)
        self._receive(_mailbox(mailbox, out), mailbox, out)

    def abort(self, memory: Memory) -> None:
        """Make all calls in a segment fail, those under way too; from any thread or process."""
        self._abort(ctypes.addressof(memory))

    def failure(self, memory: Memory) -> Failure | None:
        """Why calls in a segment fail, if they do."""
        word = ctypes.c_uint32.from_buffer(memory).value
        return Failure(_REASONS[word % 256], word // 256) if word else None


class Futex:
    """Sleeping on a word of 32 bits that processes share, until one of them wakes it."""

    def __init__(self, library: Library) -> None:
        self._wait = library.function(
            "futex_wait", ctypes.c_int32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int64
        )
        self._wake = library.function("futex_wake", None, ctypes.c_void_p)

    def wait(self, address: int, expected: int, timeout_s: float) -> bool:
        """Sleep while the word at an address is as expected; False if the time was up.

        May return early, so what is waited for is to be looked at again. The GIL is not held.
        """
        return bool(self._wait(address, expected, int(timeout_s * 1e9)))

    def wake(self, address: int) -> None:
        """Wake all that sleep on the word, which has been changed before."""
        self._wake(address)


def _check_contiguous(name: str, x: torch.Tensor) -> None:
    if not x.is_contiguous():
        raise ValueError(f"{name}: {tuple(x.shape)} {x.stride()}, expected a contiguous tensor")


def _check_capacity(capacity: int) -> None:
    if capacity < MIN_CAPACITY or capacity % _ALIGNMENT:
        raise ValueError(
            f"capacity: {capacity}, expected a multiple of {_ALIGNMENT}, {MIN_CAPACITY} or more"
        )


def _seat(seat: Seat) -> _Seat:
    return _Seat(
        ctypes.addressof(seat.memory), seat.capacity, int(seat.limit_s * 1e9), seat.rank, seat.size
    )


def _mailbox(mailbox: Mailbox, message: torch.Tensor) -> _Mailbox:
    return _Mailbox(
        ctypes.addressof(mailbox.memory),
        mailbox.capacity,
        int(mailbox.limit_s * 1e9),
        mailbox.num_slots,
        message.data_ptr(),
        message.numel() * message.itemsize,
    )
