"""Attention over a paged cache, and what comes before it, by the CPU kernels."""

import ctypes

import torch

from workers.kernels.arguments import ROW_DTYPES, check_tensor
from workers.kernels.cpu_batch import CpuBatch
from workers.kernels.library import Library, dtype_code

MAX_HEAD_DIM = 512

NO_WINDOW = 2**62
"""How the kernels are told that a query sees all positions before it."""


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


class AttendStruct(ctypes.Structure):
    """Arguments of the kernel (native/attention.h)."""

    _fields_ = (
        ("batch", ctypes.c_void_p),
        ("qkv", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("partial", ctypes.c_void_p),
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
        self._attend = library.kernel("attend", AttendStruct)

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
        check_cache(self._heads, qkv, keys, values, key_scales, value_scales)
        check_tensor("positions", positions, torch.int64, (qkv.shape[0],))
        check_tensor("rotation", rotation, qkv.dtype, (rotation.shape[0], head_dim))
        if norm is not None:
            check_tensor("norm", norm, qkv.dtype, (num_heads + num_kv_heads, head_dim))
        args = _WriteHeads(
            ctypes.addressof(batch.struct),
            qkv.data_ptr(),
            positions.data_ptr(),
            rotation.data_ptr(),
            pointer(norm),
            keys.data_ptr(),
            values.data_ptr(),
            pointer(key_scales),
            pointer(value_scales),
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
        check_cache(self._heads, qkv, keys, values, key_scales, value_scales)
        check_tensor("out", out, qkv.dtype, (qkv.shape[0], num_heads * head_dim))
        args = attend_struct(
            *(self._heads, batch, qkv, keys, values, key_scales, value_scales),
            window=window,
            scale=scale,
            row_by_row=self._row_by_row,
        )
        args.out = out.data_ptr()
        self._attend(args, batch, qkv, out, keys, values, key_scales, value_scales)


def attend_struct(
    heads: tuple[int, int, int],
    batch: CpuBatch,
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    key_scales: torch.Tensor | None,
    value_scales: torch.Tensor | None,
    *,
    window: int | None,
    scale: float,
    row_by_row: bool,
) -> AttendStruct:
    """The arguments of CpuAttention.attend for the kernel, but for where results go."""
    return AttendStruct(
        ctypes.addressof(batch.struct),
        qkv.data_ptr(),
        None,
        None,
        keys.data_ptr(),
        values.data_ptr(),
        pointer(key_scales),
        pointer(value_scales),
        qkv.shape[0],
        *heads,
        keys.shape[1],
        NO_WINDOW if window is None else window,
        scale,
        dtype_code(qkv.dtype),
        dtype_code(keys.dtype),
        row_by_row,
    )


def check_cache(
    heads: tuple[int, int, int],
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    key_scales: torch.Tensor | None,
    value_scales: torch.Tensor | None,
) -> None:
    """Of heads (num_heads, num_kv_heads, head_dim), as CpuAttention.write_heads has them.

    Raises TypeError for a wrong dtype, ValueError for a wrong shape or layout.
    """
    num_heads, num_kv_heads, head_dim = heads
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


def pointer(tensor: torch.Tensor | None) -> int | None:
    """Where a tensor's memory begins; None for none."""
    return None if tensor is None else tensor.data_ptr()
