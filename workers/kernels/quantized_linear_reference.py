"""Products with weights of few bits, in plain torch: what fast kernels are compared with."""

import torch
import torch.nn.functional as F

_LARGEST_CODE = 127


def quantized_linear(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | int,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """x [T, K] times the transpose of the weight that the codes stand for, in float32.

    Args:
        x: float32, bfloat16 or float16.
        codes: int8 or uint8 [N, K].
        scales: float32 [N, G], one for each K / G neighbouring inputs.
        zeros: The codes that mean zero, [N, G], or one for all.
        bias: [N], or None.

    Returns:
        [T, N] in the dtype of x.
    """
    num_outputs, num_groups = scales.shape
    grouped = codes.view(num_outputs, num_groups, -1).float()
    weight = (grouped - _each_group(zeros)) * scales.unsqueeze(-1)
    product = F.linear(x.float(), weight.view(codes.shape), None if bias is None else bias.float())
    return product.to(x.dtype)


def quantized_linear_int8(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | int,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """`quantized_linear` with x rounded to int8, one scale per row (`quantize_rows`).

    The products of integers are exact sums within each group (float64 holds what fits int32).
    Groups are then summed in float32, times their scales; the row's scale and the bias come last.
    """
    num_outputs, num_groups = scales.shape
    rows, row_scales = quantize_rows(x)
    inputs = rows.double().view(len(x), num_groups, -1).unbind(1)
    weights = (codes.view(num_outputs, num_groups, -1).double() - _each_group(zeros)).unbind(1)
    total = torch.zeros(len(x), num_outputs, device=x.device)
    for part, weight, scale in zip(inputs, weights, scales.unbind(1), strict=True):
        total += (part @ weight.T).float() * scale
    total *= row_scales
    return (total if bias is None else total + bias.float()).to(x.dtype)


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row of x [T, K] as int8 [T, K] in -127..127 and its float32 scale [T, 1].

    The scale is the largest absolute value over 127, and codes are x times 127 over that value,
    rounded half to even; a row of zeros has scale 0.
    """
    largest = x.float().abs().amax(dim=1, keepdim=True)
    factor = torch.where(largest > 0, _LARGEST_CODE / largest, 0.0)
    return (x.float() * factor).round().to(torch.int8), largest / _LARGEST_CODE


def _each_group(zeros: torch.Tensor | int) -> torch.Tensor | int:
    return zeros if isinstance(zeros, int) else zeros.float().unsqueeze(-1)
