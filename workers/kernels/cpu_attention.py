"""Attention over a paged cache, and what comes before it, by the CPU kernels."""

import ctypes

import numpy as np
import torch

from workers.kernels.arguments import ROW_DTYPES, check_tensor
from workers.kernels.library import Library, dtype_code

MAX_HEAD_DIM = 512

_NO_WINDOW = 2**62


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
    )


class _WriteHeads(ctypes.Structure):
    _fields_ = (
        ("batch", ctypes.c_void_p),
        ("qkv", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("rotation", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("key_scales", ctypes.c_void_p),
        ("value_scales", ctypes.c_void_p),
        ("num_heads", ctypes.c_int64),
        ("num_kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("dtype", ctypes.c_int32),
        ("cache_dtype", ctypes.c_int32),
    )


class _Attend(ctypes.Structure):
    _fields_ = (
        ("batch", ctypes.c_void_p),
        ("qkv", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("key_scales", ctypes.c_void_p),
        ("value_scales", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("num_heads", ctypes.c_int64),
        ("num_kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("block_size", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("dtype", ctypes.c_int32),
        ("cache_dtype", ctypes.c_int32),
        ("row_by_row", ctypes.c_int32),
    )


class CpuBatch:
    """Where a step's rows stand, for the kernels.

    The struct that they read stays at one address, so that recorded calls meet what was set last.
    """

    def __init__(self) -> None:
        self.struct = BatchStruct()
        self._tables = np.zeros((0, 0), dtype=np.int32)
        self._known: list[list[int]] = []
        self._alive: tuple[object, ...] = ()

    def set(
        self,
        slots: torch.Tensor,
        query_starts: list[int],
        context_lens: list[int],
        block_tables: list[list[int]],
    ) -> None:
        """Take a step's batch, as AttentionMetadata describes it; slots may be negative for none.

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
        starts = np.array(query_starts, dtype=np.int32)
        lengths = np.array(context_lens, dtype=np.int32)
        self._copy_tables(block_tables)
        struct = self.struct
        struct.slots = slots.data_ptr()
        struct.query_starts = starts.ctypes.data
        struct.context_lens = lengths.ctypes.data
        struct.block_tables = self._tables.ctypes.data
        struct.table_stride = self._tables.shape[1]
        struct.num_sequences = len(context_lens)
        struct.num_rows = query_starts[-1]
        self._alive = (slots, starts, lengths)

    def _copy_tables(self, block_tables: list[list[int]]) -> None:
        """Only rows that are not as they were: from step to step, few tables grow."""
        longest = max(map(len, block_tables), default=0)
        num_rows, num_columns = self._tables.shape
        if len(block_tables) > num_rows or longest > num_columns:
            shape = (_grown(num_rows, len(block_tables)), _grown(num_columns, longest))
            self._tables = np.zeros(shape, dtype=np.int32)
            self._known = [[] for _ in range(shape[0])]
        for row, table in enumerate(block_tables):
            if self._known[row] != table:
                self._tables[row, : len(table)] = table
                self._known[row] = list(table)


class CpuAttention:
    """Attention kernels for heads of an even size up to 512, in float32 or bfloat16.

    All computing is in float32, rounded once. A row's result depends neither on the other sequences
    of its batch nor on the number of threads. A sequence's rows computed alone (one row in a step)
    and together round differently, unless all are computed `row_by_row`; together, they do not
    depend on how many they are.
    """

    def __init__(
        self,
        library: Library,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        row_by_row: bool = False,
    ) -> None:
        if head_dim % 2 or not 0 < head_dim <= MAX_HEAD_DIM:
            raise ValueError(f"head_dim: got {head_dim}, expected an even one up to {MAX_HEAD_DIM}")
        if num_heads % num_kv_heads:
            raise ValueError(f"num_heads: got {num_heads}, expected a multiple of {num_kv_heads}")
        self._heads = (num_heads, num_kv_heads, head_dim)
        self._row_by_row = row_by_row
        self._write_heads = library.kernel("write_heads", _WriteHeads)
        self._attend = library.kernel("attend", _Attend)

    def write_heads(
        self,
        batch: CpuBatch,
        qkv: torch.Tensor,
        positions: torch.Tensor,
        rotation: torch.Tensor,
        norm: torch.Tensor | None,
        eps: float,
        keys: torch.Tensor,
        values: torch.Tensor,
        key_scales: torch.Tensor | None,
        value_scales: torch.Tensor | None,
    ) -> None:
        """Normalise and rotate queries in place; put keys, likewise, and values into the cache.

        Args:
            batch: Says where in the cache each row goes.
            qkv: [T, num_heads + 2 * num_kv_heads, head_dim].
            positions: int64 [T], below max_len. Not checked: they change between plays.
            rotation: [max_len, head_dim], cosines and sines, like qkv.
            norm: RMS norm weights [num_heads + num_kv_heads, head_dim], like qkv; None for no norm.
            eps: Of the norm.
            keys: [num_blocks, block_size, num_kv_heads, head_dim], like qkv or int8.
            values: Like keys.
            key_scales: float32 [num_blocks, block_size, num_kv_heads], for int8 keys.
            value_scales: Like key_scales.

        Raises:
            TypeError: Wrong dtype.
            ValueError: Wrong shape or layout.
        """
        num_heads, num_kv_heads, head_dim = self._heads
        self._check_cache(qkv, keys, values, key_scales, value_scales)
        check_tensor("positions", positions, torch.int64, (qkv.shape[0],))
        check_tensor("rotation", rotation, qkv.dtype, (rotation.shape[0], head_dim))
        if norm is not None:
            check_tensor("norm", norm, qkv.dtype, (num_heads + num_kv_heads, head_dim))
        args = _WriteHeads(
            ctypes.addressof(batch.struct),
            qkv.data_ptr(),
            positions.data_ptr(),
            rotation.data_ptr(),
            _pointer(norm),
            keys.data_ptr(),
            values.data_ptr(),
            _pointer(key_scales),
            _pointer(value_scales),
            *self._heads,
            eps,
            dtype_code(qkv.dtype),
            dtype_code(keys.dtype),
        )
        self._write_heads(
            args, batch, qkv, positions, rotation, norm, keys, values, key_scales, value_scales
        )

    def attend(
        self,
        batch: CpuBatch,
        qkv: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        key_scales: torch.Tensor | None,
        value_scales: torch.Tensor | None,
        *,
        window: int | None,
        scale: float,
        out: torch.Tensor,
    ) -> None:
        """Causal attention of the queries in qkv over the cache, which holds their keys already.

        Args as in `write_heads`, and:
            window: Each query sees this many latest positions, its own included; None for all.
            scale: Factor on the dot products.
            out: [T, num_heads * head_dim] like qkv; zeros in padding rows.

        Raises:
            TypeError: Wrong dtype.
            ValueError: Wrong shape or layout.
        """
        num_heads, _, head_dim = self._heads
        self._check_cache(qkv, keys, values, key_scales, value_scales)
        check_tensor("out", out, qkv.dtype, (qkv.shape[0], num_heads * head_dim))
        args = _Attend(
            ctypes.addressof(batch.struct),
            qkv.data_ptr(),
            out.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            _pointer(key_scales),
            _pointer(value_scales),
            qkv.shape[0],
            *self._heads,
            keys.shape[1],
            _NO_WINDOW if window is None else window,
            scale,
            dtype_code(qkv.dtype),
            dtype_code(keys.dtype),
            self._row_by_row,
        )
        self._attend(args, batch, qkv, out, keys, values, key_scales, value_scales)

    def _check_cache(
        self,
        qkv: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        key_scales: torch.Tensor | None,
        value_scales: torch.Tensor | None,
    ) -> None:
        num_heads, num_kv_heads, head_dim = self._heads
        if qkv.dtype not in ROW_DTYPES:
            raise TypeError(f"qkv: {qkv.dtype}, expected one of {ROW_DTYPES}")
        check_tensor("qkv", qkv, qkv.dtype, (qkv.shape[0], num_heads + 2 * num_kv_heads, head_dim))
        is_int8 = keys.dtype == torch.int8
        dtype = torch.int8 if is_int8 else qkv.dtype
        scales_shape = (*keys.shape[:2], num_kv_heads)
        for name, store, scales in (("key", keys, key_scales), ("value", values, value_scales)):
            check_tensor(f"{name}s", store, dtype, (*scales_shape, head_dim))
            if (scales is not None) != is_int8:
                raise ValueError(f"{name}_scales: expected with int8 {name}s, and only then")
            if scales is not None:
                check_tensor(f"{name}_scales", scales, torch.float32, scales_shape)


def _pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _grown(size: int, needed: int) -> int:
    """A size that suffices, with room to grow if it has to change."""
    return size if needed <= size else max(2 * size, needed)
