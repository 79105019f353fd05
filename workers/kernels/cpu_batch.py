"""A step's batch as the attention kernels read it."""

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

Ids = Sequence[int] | npt.NDArray[np.int64]
"""Numbers of blocks."""

_Matrix = npt.NDArray[np.int32]
_Vector = npt.NDArray[np.int32]


class BatchStruct(ctypes.Structure):
    """A step's batch for the kernels (native/attention.h)."""

    _fields_ = (
        ("slots", ctypes.c_void_p),
        ("query_starts", ctypes.c_void_p),
        ("context_lens", ctypes.c_void_p),
        ("block_tables", ctypes.c_void_p),
        ("table_stride", ctypes.c_int64),
        ("num_sequences", ctypes.c_int64),
        ("num_rows", ctypes.c_int64),
        ("table_lens", ctypes.c_void_p),
        ("block_places", ctypes.c_void_p),
    )


class CpuBatch:
    """Where a step's rows stand, for the kernels.

    The struct that they read stays at one address, so that recorded calls meet what was set last.
    """

    def __init__(self) -> None:
        self.struct = BatchStruct()
        self._tables: _Matrix = np.zeros((0, 0), dtype=np.int32)
        self._places: _Matrix = np.zeros((0, 0), dtype=np.int32)
        self._alive: tuple[object, ...] = ()

    def set(
        self,
        slots: torch.Tensor,
        query_starts: list[int],
        context_lens: list[int],
        block_tables: Sequence[Ids],
        block_places: Sequence[Ids] | None = None,
    ) -> None:
        """Take a step's batch, as AttentionMetadata describes it; slots may be negative for none.

        With `block_places`, block_tables have only some of each sequence's blocks, and this says
        which of the sequence's they are, in ascending order.

        Raises TypeError or ValueError if slots is not a contiguous int64 vector in main memory with
        a slot for each row.
        """
        if slots.dtype != torch.int64 or slots.device.type != "cpu":
            raise TypeError(f"slots: {slots.dtype} on {slots.device}, expected int64 on cpu")
        if slots.shape != (query_starts[-1],) or not slots.is_contiguous():
            raise ValueError(
                f"slots: {tuple(slots.shape)} {slots.stride()}, expected contiguous "
                f"{(query_starts[-1],)}"
            )
        table_lens = [*map(len, block_tables)]
        self._grow(len(table_lens), max(table_lens, default=0))
        numbers = np.array([*query_starts, *context_lens, *table_lens], dtype=np.int32)
        address, size = numbers.ctypes.data, numbers.itemsize
        _fill(self._tables, block_tables, numbers[-len(table_lens) :])
        if block_places is not None:
            _fill(self._places, block_places, numbers[-len(table_lens) :])
        struct = self.struct
        struct.slots = slots.data_ptr()
        struct.query_starts = address
        struct.context_lens = address + size * len(query_starts)
        struct.table_lens = address + size * (len(query_starts) + len(context_lens))
        struct.num_sequences = len(context_lens)
        struct.num_rows = query_starts[-1]
        struct.block_places = None if block_places is None else self._places.ctypes.data
        self._alive = (slots, numbers)

    def _grow(self, num_rows: int, num_columns: int) -> None:
        rows, columns = self._tables.shape
        if num_rows > rows or num_columns > columns:
            shape = (_grown(rows, num_rows), _grown(columns, num_columns))
            self._tables = np.zeros(shape, dtype=np.int32)
            self._places = np.zeros(shape, dtype=np.int32)
            self.struct.block_tables = self._tables.ctypes.data
            self.struct.table_stride = shape[1]


def _fill(matrix: _Matrix, rows: Sequence[Ids], lengths: _Vector) -> None:
    """Write rows of such lengths to the matrix, all at once."""
    if len(rows) == 1:
        matrix[0, : lengths[0]] = rows[0]
    elif len(rows):
        columns = np.arange(lengths.max())
        target = matrix[: len(rows), : len(columns)]
        target[columns < lengths[:, None]] = np.concatenate(rows)


def _grown(size: int, needed: int) -> int:
    """A size that suffices, with room to grow if it has to change."""
    return size if needed <= size else max(2 * size, needed)
