"""Norm, gate and rotation equal transformers', up to rounding."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from workers.kernels.rms_norm import add_rms_norm, head_norm, rms_norm
from workers.kernels.rotary import rotate
from workers.kernels.silu_mul import silu_mul

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def _theirs(weight: torch.Tensor) -> LlamaRMSNorm:
    norm = LlamaRMSNorm(len(weight), eps=1e-5).to(weight.dtype)
    norm.weight.data = weight
    return norm


@DTYPES
def test_rms_norm(dtype: torch.dtype) -> None:
    x, weight = torch.randn(5, 32).to(dtype), torch.randn(32).to(dtype)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), _theirs(weight)(x))


@DTYPES
def test_add_rms_norm_leaves_the_sum_in_the_residual(dtype: torch.dtype) -> None:
    residual, delta = torch.randn(2, 5, 32).to(dtype).unbind()
    weight = torch.randn(32).to(dtype)
    expected = residual + delta
    normed = add_rms_norm(residual, delta, weight, 1e-5)
    assert torch.equal(residual, expected)
    torch.testing.assert_close(normed, _theirs(weight)(expected))


@DTYPES
def test_head_norm_gives_each_head_its_own_weight(dtype: torch.dtype) -> None:
    heads, weights = torch.randn(5, 3, 16).to(dtype), torch.randn(3, 16).to(dtype)
    normed = head_norm(heads, weights, 1e-5)
    for head in range(3):
        torch.testing.assert_close(normed[:, head], _theirs(weights[head])(heads[:, head]))


@DTYPES
def test_silu_mul(dtype: torch.dtype) -> None:
    gate, up = torch.randn(2, 5, 32).to(dtype).unbind()
    expected = torch.nn.functional.silu(gate) * up
    assert torch.equal(silu_mul(torch.cat((gate, up), dim=-1)), expected)


@DTYPES
def test_rotate(dtype: torch.dtype) -> None:
    heads = torch.randn(5, 3, 16).to(dtype)
    angles = torch.randn(5, 8)
    cos = torch.cat((angles.cos(), angles.cos()), dim=-1).to(dtype)
    sin = torch.cat((angles.sin(), angles.sin()), dim=-1).to(dtype)
    expected, _ = apply_rotary_pos_emb(heads, heads, cos, sin, unsqueeze_dim=1)
    found = rotate(heads, cos[:, None, :8], sin[:, None, :8])
    atol = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-5)
