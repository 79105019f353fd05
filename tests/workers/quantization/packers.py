"""Writers of quantized checkpoints, one code at a time, from the formats' published definitions."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

Tensors = dict[str, torch.Tensor]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Quantized(NamedTuple):
    """A weight of N outputs and K inputs as whole numbers that count from 0."""

    codes: list[list[int]]
    """[N][K]"""
    zeros: list[list[int]]
    """[N][G]"""
    scales: list[list[float]]
    """[N][G]"""
    groups: list[int]
    """Each input's group, [K]."""
    bits: int

    def dequantized(self) -> torch.Tensor:
        """float32 [N, K], weight by weight."""
        return torch.tensor(
            [
                [(code - zeros[g]) * scales[g] for code, g in zip(codes, self.groups, strict=True)]
                for codes, zeros, scales in zip(self.codes, self.zeros, self.scales, strict=True)
            ]
        )


def round_to_nearest(
    weight: torch.Tensor, group_size: int, bits: int, groups: list[int], *, symmetric: bool
) -> Quantized:
    """The plainest quantization there is, row by row and group by group."""
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    codes, zeros, scales = [], [], []
    for row in weight.tolist():
        by_group = [
            [w for w, g in zip(row, groups, strict=True) if g == group]
            for group in range(len(row) // group_size)
        ]
        if symmetric:
            scale = [max(map(abs, ws)) / (middle - 1) for ws in by_group]
            zero = [middle] * len(by_group)
        else:
            scale = [(max(*ws, 0) - min(*ws, 0)) / top for ws in by_group]
            zero = [round(-min(*ws, 0) / s) for ws, s in zip(by_group, scale, strict=True)]
        codes.append(
            [
                min(max(round(w / scale[g]) + zero[g], 0), top)
                for w, g in zip(row, groups, strict=True)
            ]
        )
        scales.append(scale)
        zeros.append(zero)
    return Quantized(codes, zeros, torch.tensor(scales).tolist(), groups, bits)


def gptq(weight: Quantized, *, version: int = 1) -> Tensors:
    """As AutoGPTQ (version 1: zeros less one) and GPTQModel (version 2) store a module."""
    offset = 1 if version == 1 else 0
    stored_zeros = [[zero - offset for zero in row] for row in _transposed(weight.zeros)]
    return {
        "qweight": _words([_packed(row, weight.bits) for row in weight.codes]).T.contiguous(),
        "qzeros": _words([_packed(row, weight.bits) for row in stored_zeros]),
        "scales": torch.tensor(weight.scales).T.contiguous(),
        "g_idx": torch.tensor(weight.groups, dtype=torch.int32),
    }


def awq(weight: Quantized) -> Tensors:
    """As AutoAWQ's gemm version stores a module."""
    return {
        "qweight": _words([_interleaved(row) for row in _transposed(weight.codes)]),
        "qzeros": _words([_interleaved(row) for row in _transposed(weight.zeros)]),
        "scales": torch.tensor(weight.scales).T.contiguous(),
    }


def packed_tensors(weight: Quantized, *, symmetric: bool, has_order: bool = False) -> Tensors:
    """As compressed-tensors stores a module in "pack-quantized"."""
    found = {
        "weight_packed": _words([_packed(row, weight.bits) for row in weight.codes]),
        "weight_scale": torch.tensor(weight.scales),
        "weight_shape": torch.tensor([len(weight.codes), len(weight.codes[0])]),
    }
    if not symmetric:
        columns = [_packed(column, weight.bits) for column in _transposed(weight.zeros)]
        found["weight_zero_point"] = _words(columns).T.contiguous()
    if has_order:
        found["weight_g_idx"] = torch.tensor(weight.groups, dtype=torch.int32)
    return found


def integer_tensors(weight: Quantized, *, symmetric: bool) -> Tensors:
    """As compressed-tensors stores a module in "int-quantized"."""
    found = {
        "weight": (torch.tensor(weight.codes) - 128).to(torch.int8),
        "weight_scale": torch.tensor(weight.scales),
    }
    if not symmetric:
        found["weight_zero_point"] = (torch.tensor(weight.zeros) - 128).to(torch.int8)
    return found


def _packed(codes: Sequence[int], bits: int) -> list[int]:
    """Unsigned 32-bit words, the first code in the lowest bits; the last word is filled up."""
    words = [0] * -(-len(codes) * bits // 32)
    for index, code in enumerate(codes):
        for bit in range(bits):
            position = index * bits + bit
            words[position // 32] |= (code >> bit & 1) << position % 32
    return words


def _interleaved(codes: Sequence[int]) -> list[int]:
    return [
        sum(codes[first + output] << 4 * place for place, output in enumerate(AWQ_ORDER))
        for first in range(0, len(codes), 8)
    ]


def _words(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor([[w - (w >> 31 << 32) for w in row] for row in rows], dtype=torch.int32)


def _transposed(rows: list[list[int]]) -> list[list[int]]:
    return [list(column) for column in zip(*rows, strict=True)]
