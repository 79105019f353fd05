"""Attention in steps, for ranks that exchange heads and results, by the CPU kernels."""

import ctypes

import torch

from workers.kernels.arguments import check_tensor
from workers.kernels.cpu_attention import AttendStruct, attend_struct, check_cache, pointer
from workers.kernels.cpu_batch import CpuBatch
from workers.kernels.library import Library, dtype_code


class _RotateHeads(ctypes.Structure):
    _fields_ = (
        ("qkv", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("rotation", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("num_heads", ctypes.c_int64),
        ("num_kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("dtype", ctypes.c_int32),
    )


class _WriteTokens(ctypes.Structure):
    _fields_ = (
        ("batch", ctypes.c_void_p),
        ("qkv", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("key_scales", ctypes.c_void_p),
        ("value_scales", ctypes.c_void_p),
        ("num_heads", ctypes.c_int64),
        ("num_kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("cache_dtype", ctypes.c_int32),
    )


class _MergePartials(ctypes.Structure):
    _fields_ = (
        ("parts", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("num_parts", ctypes.c_int64),
        ("num_rows", ctypes.c_int64),
        ("num_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
    )


class CpuPartialAttention:
    """What CpuAttention does, over some of each sequence's blocks, and the joining of such parts.

    A partial result is a row of float32 per query, [num_heads * (head_dim + 1)]: all heads'
    results, each a softmax over these blocks alone times their values, then the heads'
    log-sum-exps. Methods raise TypeError or ValueError, naming the argument, for a wrong dtype,
    shape or layout.
    """

    def __init__(self, library: Library, num_heads: int, num_kv_heads: int, head_dim: int) -> None:
        """For head_dim even and at most MAX_HEAD_DIM, num_heads a multiple of num_kv_heads."""
        self._heads = (num_heads, num_kv_heads, head_dim)
        self._rotate_heads = library.kernel("rotate_heads", _RotateHeads)
        self._write_tokens = library.kernel("write_tokens", _WriteTokens)
        self._attend = library.kernel("attend", AttendStruct)
        self._merge_partials = library.kernel("merge_partials", _MergePartials)

    @property
    def partial_width(self) -> int:
        """Elements of a partial result's row."""
        num_heads, _, head_dim = self._heads
        return num_heads * (head_dim + 1)

    def rotate_heads(
        self,
        qkv: torch.Tensor,
        positions: torch.Tensor,
        rotation: torch.Tensor,
        norm: torch.Tensor | None,
        eps: float,
    ) -> None:
        """Normalise and rotate the queries and keys of all rows in place.

        Args as in CpuAttention.write_heads.
        """
        num_heads, num_kv_heads, head_dim = self._heads
        num_rows = qkv.shape[0]
        check_tensor("qkv", qkv, qkv.dtype, (num_rows, num_heads + 2 * num_kv_heads, head_dim))
        check_tensor("positions", positions, torch.int64, (num_rows,))
        check_tensor("rotation", rotation, qkv.dtype, (rotation.shape[0], head_dim))
        if norm is not None:
            check_tensor("norm", norm, qkv.dtype, (num_heads + num_kv_heads, head_dim))
        args = _RotateHeads(
            qkv.data_ptr(),
            positions.data_ptr(),
            rotation.data_ptr(),
            pointer(norm),
            num_rows,
            *self._heads,
            eps,
            dtype_code(qkv.dtype),
        )
        self._rotate_heads(args, qkv, positions, rotation, norm)

    def write_tokens(
        self,
        batch: CpuBatch,
        qkv: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        key_scales: torch.Tensor | None,
        value_scales: torch.Tensor | None,
    ) -> None:
        """Put rotated keys, and values, into the cache, of those rows that have a slot there.

        Args as in CpuAttention.write_heads.
        """
        check_cache(self._heads, qkv, keys, values, key_scales, value_scales)
        args = _WriteTokens(
            ctypes.addressof(batch.struct),
            qkv.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            pointer(key_scales),
            pointer(value_scales),
            *self._heads,
            dtype_code(qkv.dtype),
            dtype_code(keys.dtype),
        )
        self._write_tokens(args, batch, qkv, keys, values, key_scales, value_scales)

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
        """Causal attention of the queries in qkv over the batch's blocks.

        Args as in CpuAttention.attend, but for:
            out: float32 [T, partial_width]. A query that sees nothing gets zeros, and minus
                infinity for log-sum-exps; padding rows are zero.
        """
        check_cache(self._heads, qkv, keys, values, key_scales, value_scales)
        check_tensor("out", out, torch.float32, (qkv.shape[0], self.partial_width))
        args = attend_struct(
            *(self._heads, batch, qkv, keys, values, key_scales, value_scales),
            window=window,
            scale=scale,
            row_by_row=False,
        )
        args.partial = out.data_ptr()
        self._attend(args, batch, qkv, out, keys, values, key_scales, value_scales)

    def merge(self, parts: torch.Tensor, out: torch.Tensor) -> None:
        """Attention over all positions, of that over each of N parts of them.

        Args:
            parts: float32 [N, R, partial_width].
            out: [R, num_heads * head_dim], float32 or bfloat16; zeros where no part sees any.
        """
        num_heads, _, head_dim = self._heads
        num_parts, num_rows = parts.shape[:2]
        check_tensor("parts", parts, torch.float32, (num_parts, num_rows, self.partial_width))
        check_tensor("out", out, out.dtype, (num_rows, num_heads * head_dim))
        args = _MergePartials(
            parts.data_ptr(),
            out.data_ptr(),
            num_parts,
            num_rows,
            num_heads,
            head_dim,
            dtype_code(out.dtype),
        )
        self._merge_partials(args, parts, out)
