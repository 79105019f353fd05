"""Row-wise work between matrix products and attention, by the CPU kernels."""

import ctypes

import torch

from workers.kernels.arguments import check_tensor, matrix_shape
from workers.kernels.library import Library, dtype_code


class _AddRmsNorm(ctypes.Structure):
    _fields_ = (
        ("residual", ctypes.c_void_p),
        ("delta", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("dtype", ctypes.c_int32),
    )


class _SiluMul(ctypes.Structure):
    _fields_ = (
        ("gate_up", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
    )


class _GatherRows(ctypes.Structure):
    _fields_ = (
        ("table", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
        ("first_row", ctypes.c_int64),
        ("table_rows", ctypes.c_int64),
    )


class _AddRows(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
    )


class _AreFinite(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
    )


class CpuRowKernels:
    """RowKernels, and the gate of a feed-forward layer.

    Activations are float32 or bfloat16, contiguous, computed with in float32 and rounded once. A
    row's result does not depend on the other rows, nor on the number of threads. All methods raise
    TypeError or ValueError, naming the argument, if a dtype or shape is not as said.
    """

    def __init__(self, library: Library) -> None:
        self._add_rms_norm = library.kernel("add_rms_norm", _AddRmsNorm)
        self._silu_mul = library.kernel("silu_mul", _SiluMul)
        self._gather_rows = library.kernel("gather_rows", _GatherRows)
        self._add_rows = library.kernel("add_rows", _AddRows)
        self._are_finite = library.kernel("are_finite", _AreFinite)

    def embed(
        self,
        token_ids: torch.Tensor,
        table: torch.Tensor,
        out: torch.Tensor,
        first_id: int | None = None,
    ) -> None:
        """See RowKernels."""
        self.gather_rows(table, token_ids, out, first_id or 0)

    def add(self, residual: torch.Tensor, delta: torch.Tensor) -> None:
        """See RowKernels."""
        num_rows, width = matrix_shape("residual", residual)
        check_tensor("delta", delta, residual.dtype, (num_rows, width))
        args = _AddRows(
            residual.data_ptr(), delta.data_ptr(), num_rows, width, dtype_code(residual.dtype)
        )
        self._add_rows(args, residual, delta)

    def add_rms_norm(
        self,
        residual: torch.Tensor,
        delta: torch.Tensor | None,
        weight: torch.Tensor,
        eps: float,
        out: torch.Tensor,
    ) -> None:
        """Add delta, if any, to residual in place, both [T, H]; out is the sum's rms_norm."""
        num_rows, width = matrix_shape("residual", residual)
        check_tensor("weight", weight, residual.dtype, (width,))
        check_tensor("out", out, residual.dtype, (num_rows, width))
        if delta is not None:
            check_tensor("delta", delta, residual.dtype, (num_rows, width))
        args = _AddRmsNorm(
            residual.data_ptr(),
            None if delta is None else delta.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            num_rows,
            width,
            eps,
            dtype_code(residual.dtype),
        )
        self._add_rms_norm(args, residual, delta, weight, out)

    def silu_mul(self, gate_up: torch.Tensor, out: torch.Tensor) -> None:
        """out [T, I] = silu(gate) * up for gate and up side by side in gate_up [T, 2 I]."""
        num_rows, width = matrix_shape("gate_up", gate_up)
        check_tensor("out", out, gate_up.dtype, (num_rows, width // 2))
        args = _SiluMul(
            gate_up.data_ptr(), out.data_ptr(), num_rows, width // 2, dtype_code(gate_up.dtype)
        )
        self._silu_mul(args, gate_up, out)

    def gather_rows(
        self, x: torch.Tensor, rows: torch.Tensor, out: torch.Tensor, first_row: int = 0
    ) -> None:
        """out [R, H] = the rows of x [T, H] that int64 rows [R] name.

        x holds the rows from number `first_row` on; for others the result is zeros.
        """
        num_rows, width = matrix_shape("x", x)
        check_tensor("rows", rows, torch.int64, (len(out),))
        check_tensor("out", out, x.dtype, (len(rows), width))
        args = _GatherRows(
            x.data_ptr(),
            rows.data_ptr(),
            out.data_ptr(),
            len(rows),
            width * x.itemsize,
            first_row,
            num_rows,
        )
        self._gather_rows(args, x, rows, out)

    def are_finite(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """out bool [T]: whether a row of x [T, H] is free of NaN and infinity."""
        num_rows, width = matrix_shape("x", x)
        check_tensor("out", out, torch.bool, (num_rows,))
        args = _AreFinite(x.data_ptr(), out.data_ptr(), num_rows, width, dtype_code(x.dtype))
        self._are_finite(args, x, out)
