"""Checks of the tensors that kernels get, whose memory they take at their word."""

import torch

ROW_DTYPES = (torch.float32, torch.bfloat16)
"""Of activations."""


def check_tensor(name: str, x: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raises TypeError for another dtype, ValueError for another shape or gaps in memory."""
    if x.dtype != dtype:
        raise TypeError(f"{name}: {x.dtype}, expected {dtype}")
    if x.shape != shape or not x.is_contiguous():
        raise ValueError(f"{name}: {tuple(x.shape)} {x.stride()}, expected contiguous {shape}")


def matrix_shape(name: str, x: torch.Tensor) -> tuple[int, int]:
    """The rows and columns of a matrix of activations.

    Raises TypeError if it is none of ROW_DTYPES, ValueError for gaps in memory.
    """
    if x.dtype not in ROW_DTYPES:
        raise TypeError(f"{name}: {x.dtype}, expected one of {ROW_DTYPES}")
    if x.dim() != 2 or not x.is_contiguous():
        raise ValueError(f"{name}: {tuple(x.shape)} {x.stride()}, expected a contiguous matrix")
    num_rows, width = x.shape
    return num_rows, width
