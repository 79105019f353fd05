"""Named shapes have as many parameters as their names and makers say."""

import pytest

from ops.models.shapes import NAMED

MILLIONS = {
    "demo": 7.34,
    "demo-small": 1.31,
    "smol-110m": 107.2,
    "qwen2-0.5b": 494.0,  # as Qwen2's report says
    "qwen3-0.6b": 473.2,  # 440.5 besides the embedding, as in the original, and 32,000 rows
    "llama-1b": 1235.8,
    "llama-8b": 8030.3,
    "mistral-7b": 7241.7,
}


@pytest.mark.parametrize("name", NAMED)
def test_parameters_are_as_many_as_claimed(name: str) -> None:
    assert NAMED[name].num_parameters / 1e6 == pytest.approx(MILLIONS[name], rel=2e-3)


@pytest.mark.parametrize("name", NAMED)
def test_heads_divide_into_groups(name: str) -> None:
    shape = NAMED[name]
    assert shape.num_heads % shape.num_kv_heads == 0
    assert shape.head_dim % 16 == 0
