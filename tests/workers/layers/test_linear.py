"""Linear layers, whole and cut among ranks."""

import pytest
import torch
import torch.nn.functional as F

from workers.layers.linear import PackedLinear, PlainLinear, make_linear
from workers.layers.sharding import Shard


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 3, 64, 130])
def test_packed_equals_plain(dtype: torch.dtype, has_bias: bool, num_rows: int) -> None:
    x, weight = torch.randn(num_rows, 48).to(dtype), torch.randn(56, 48).to(dtype)
    bias = torch.randn(56).to(dtype) if has_bias else None
    packed = make_linear(weight, bias)
    assert isinstance(packed, PackedLinear)
    torch.testing.assert_close(packed(x), F.linear(x, weight, bias), atol=1e-5, rtol=1.6e-2)


def test_a_dtype_that_cannot_be_packed_stays_plain() -> None:
    layer = make_linear(torch.ones(2, 3, dtype=torch.float64))
    assert isinstance(layer, PlainLinear)
    assert layer(torch.ones(1, 3, dtype=torch.float64)).tolist() == [[3.0, 3.0]]


def test_parts_cover_everything_once() -> None:
    parts = [Shard(rank, 4).part(12) for rank in range(4)]
    assert [index for part in parts for index in range(12)[part]] == list(range(12))


def test_uneven_parts_and_impossible_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="10 does not divide evenly among 4 ranks"):
        Shard(0, 4).part(10)
    with pytest.raises(ValueError, match="rank 2 is not within world size 2"):
        Shard(2, 2)
