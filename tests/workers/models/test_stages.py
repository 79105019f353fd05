"""Pipeline stages hold all layers in order, and the largest is as small as it can be."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.models.parsed_config import parsed
from workers.models.config import ModelConfig
from workers.models.stages import stage_layers


def largest(config: ModelConfig, stages: list[range]) -> int:
    """Multiply-adds for one row in the stage that has most."""
    hidden, width = config.hidden_size, config.head_dim
    projections = 2 * config.num_heads * width + 2 * config.num_kv_heads * width
    layer = hidden * (projections + 3 * config.intermediate_size)
    costs = [layer * len(stage) for stage in stages]
    costs[-1] += hidden * config.vocab_size
    return max(costs)


@given(
    num_layers=st.integers(1, 9),
    num_stages=st.integers(1, 9),
    vocab_size=st.integers(1, 5000),
    intermediate_size=st.integers(1, 400),
)
def test_no_other_cut_has_a_smaller_largest_stage(
    num_layers: int, num_stages: int, vocab_size: int, intermediate_size: int
) -> None:
    config = parsed(
        num_hidden_layers=num_layers, vocab_size=vocab_size, intermediate_size=intermediate_size
    )
    if num_stages > num_layers:
        with pytest.raises(ValueError, match=f"got {num_stages}, expected 1 to {num_layers}"):
            stage_layers(config, num_stages)
        return
    stages = stage_layers(config, num_stages)
    assert [index for stage in stages for index in stage] == list(range(num_layers))
    assert len(stages) == num_stages
    assert all(stages)
    cuts = combinations(range(1, num_layers), num_stages - 1)
    every = ([range(*ends) for ends in pairwise((0, *cut, num_layers))] for cut in cuts)
    assert largest(config, stages) == min(largest(config, other) for other in every)


def test_a_large_head_takes_layers_from_the_last_stage() -> None:
    lengths = {
        vocab_size: [len(stage) for stage in stage_layers(config, 4)]
        for vocab_size in (10, 1500)
        for config in [parsed(num_hidden_layers=32, vocab_size=vocab_size)]
    }
    assert lengths[10] == [8, 8, 8, 8]
    assert lengths[1500][-1] < 8
    assert max(lengths[1500]) - min(lengths[1500][:-1]) <= 1


def test_layers_with_experts_weigh_more() -> None:
    config = parsed(
        architectures=["Qwen3MoeForCausalLM"],
        num_hidden_layers=8,
        num_experts=16,
        num_experts_per_tok=2,
        moe_intermediate_size=96,
        mlp_only_layers=[0, 1, 2, 3],
    )
    assert [len(stage) for stage in stage_layers(config, 2)] == [6, 2]
