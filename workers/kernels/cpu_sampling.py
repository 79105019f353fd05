"""Tokens and log-probabilities from logits, by the CPU kernels."""

import ctypes
import struct
from typing import NamedTuple

import torch

from workers.kernels.arguments import check_tensor, matrix_shape
from workers.kernels.library import Library, dtype_code

_ROW = struct.Struct("<fffi8s")


class _Sample(ctypes.Structure):
    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("params", ctypes.c_void_p),
        ("token_ids", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("vocabulary", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
    )


class _Logprobs(ctypes.Structure):
    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("token_ids", ctypes.c_void_p),
        ("logprobs", ctypes.c_void_p),
        ("top_ids", ctypes.c_void_p),
        ("top_logprobs", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("vocabulary", ctypes.c_int64),
        ("num_top", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
    )


class _Penalize(ctypes.Structure):
    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("seen", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("num_seen", ctypes.c_int64),
        ("num_output", ctypes.c_int64),
        ("repetition", ctypes.c_float),
        ("frequency", ctypes.c_float),
        ("presence", ctypes.c_float),
    )


class Penalties(NamedTuple):
    """What makes tokens less likely that a sequence has already."""

    repetition: float
    """Divides logits above zero and multiplies the others, of all tokens of the sequence (CTRL's
    rule, Keskar et al. 2019)."""
    frequency: float
    """Taken from the logits of sampled tokens, for each time they came."""
    presence: float
    """Taken from the logits of sampled tokens."""


class RowParams:
    """How each row's token is drawn, at one address for as long as it lives."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self._memory = ctypes.create_string_buffer(num_rows * _ROW.size)
        self.address = ctypes.addressof(self._memory)

    def set(
        self, row: int, temperature: float, top_p: float, min_p: float, top_k: int, key: bytes
    ) -> None:
        """Fill in one row.

        Args:
            row: Which, below num_rows.
            temperature: 0 takes the likeliest token.
            top_p: In (0, 1]; 1 keeps all tokens.
            min_p: In [0, 1]; 0 keeps all.
            top_k: From 0 to the size of the vocabulary; 0 keeps all.
            key: The noise's, 8 bytes.
        """
        _ROW.pack_into(self._memory, row * _ROW.size, temperature, top_p, min_p, top_k, key)


class CpuSampling:
    """Draws tokens, and tells their log-probabilities; one thread per row.

    Logits are float32 or bfloat16 [R, V], contiguous; only `penalize` changes them. A row's outcome
    depends neither on the other rows nor on the number of threads. All methods raise TypeError or
    ValueError, naming the argument, if a dtype or shape is not as said.
    """

    def __init__(self, library: Library) -> None:
        self._sample = library.kernel("sample", _Sample)
        self._logprobs = library.kernel("logprobs", _Logprobs)
        self._penalize = library.kernel("penalize", _Penalize)

    def sample(self, logits: torch.Tensor, params: RowParams | None, out: torch.Tensor) -> None:
        """out int64 [R] = a token for each row; -1 if none can be drawn from it.

        That is if it has NaN or infinity, or nothing but minus infinity. Without `params` the
        likeliest tokens are taken, and of equal ones the first.
        """
        num_rows, vocabulary = matrix_shape("logits", logits)
        check_tensor("out", out, torch.int64, (num_rows,))
        if params is not None and params.num_rows < num_rows:
            raise ValueError(f"params: {params.num_rows} rows, expected {num_rows}")
        args = _Sample(
            logits.data_ptr(),
            None if params is None else params.address,
            out.data_ptr(),
            num_rows,
            vocabulary,
            dtype_code(logits.dtype),
        )
        self._sample(args, logits, params, out)

    def logprobs(
        self,
        logits: torch.Tensor,
        token_ids: torch.Tensor,
        out: torch.Tensor,
        top_ids: torch.Tensor,
        top_out: torch.Tensor,
    ) -> None:
        """Natural log-probabilities; NaN for a row that `sample` can draw nothing from.

        Args:
            logits: [R, V].
            token_ids: int64 [R], each below V.
            out: float32 [R], set to those of token_ids.
            top_ids: int64 [R, C], set to the C <= V likeliest tokens, best first.
            top_out: float32 [R, C], set to those of top_ids.
        """
        num_rows, vocabulary = matrix_shape("logits", logits)
        num_top = top_ids.shape[-1]
        check_tensor("token_ids", token_ids, torch.int64, (num_rows,))
        check_tensor("out", out, torch.float32, (num_rows,))
        check_tensor("top_ids", top_ids, torch.int64, (num_rows, min(num_top, vocabulary)))
        check_tensor("top_out", top_out, torch.float32, (num_rows, num_top))
        args = _Logprobs(
            logits.data_ptr(),
            token_ids.data_ptr(),
            out.data_ptr(),
            top_ids.data_ptr(),
            top_out.data_ptr(),
            num_rows,
            vocabulary,
            num_top,
            dtype_code(logits.dtype),
        )
        self._logprobs(args, logits, token_ids, out, top_ids, top_out)

    def penalize(
        self,
        logits: torch.Tensor,
        seen: torch.Tensor,
        output: torch.Tensor,
        counts: torch.Tensor,
        penalties: Penalties,
    ) -> None:
        """Apply penalties in place to one row.

        Args:
            logits: float32 [V].
            seen: int64 [N], distinct tokens of the sequence.
            output: int64 [M], distinct tokens that were sampled. Neither they nor `seen` are
                checked to lie below V: the model has computed with them.
            counts: float32 [M], how often these were.
            penalties: To apply; first repetition, then the others.
        """
        check_tensor("logits", logits, torch.float32, (len(logits),))
        check_tensor("seen", seen, torch.int64, (len(seen),))
        check_tensor("output", output, torch.int64, (len(output),))
        check_tensor("counts", counts, torch.float32, (len(output),))
        args = _Penalize(
            logits.data_ptr(),
            seen.data_ptr(),
            output.data_ptr(),
            counts.data_ptr(),
            len(seen),
            len(output),
            *penalties,
        )
        self._penalize(args, logits, seen, output, counts)
