"""Rank processes that share out experts give transformers' greedy tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from transformers import MixtralConfig, PretrainedConfig, Qwen2MoeConfig

from cluster.settings import EngineSettings
from tests.golden.models import VOCAB_SIZE, Case
from tests.golden.test_engine_golden import GREEDY, expected_outputs
from tests.workers.engine.forked_ranks import ForkedRanks
from workers.engine.engine import Engine
from workers.engine.engine_start import start_engine
from workers.engine.request import Request

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 96,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _mixtral() -> PretrainedConfig:
    return MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=1)


def _qwen2_moe() -> PretrainedConfig:
    return Qwen2MoeConfig(
        **SIZES,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        shared_expert_intermediate_size=128,
        mlp_only_layers=[1],
    )


@pytest.mark.parametrize(
    ("case", "parallel"),
    [
        (Case("rows-dispatched", _mixtral), {"expert": 4}),
        (Case("experts-cut", _qwen2_moe), {"expert": 2, "tensor": 2}),
        (Case("in-stages", _qwen2_moe), {"expert": 2, "pipeline": 2}),
    ],
    ids=lambda value: value.id if isinstance(value, Case) else "",
)
def test_greedy_tokens(case: Case, parallel: dict[str, int], tmp_path: Path) -> None:
    with _engine(case, tmp_path, parallel=parallel) as (engine, prompts, expected):
        assert _run(engine, prompts) == expected


def test_greedy_tokens_before_and_after_experts_move(tmp_path: Path) -> None:
    """To where their load is shared better, when the engine has nothing to do."""
    case, changes = Case("moved", _qwen2_moe), {"parallel": {"expert": 2}, "spare_experts": 1}
    with _engine(case, tmp_path, **changes) as (engine, prompts, expected):
        assert _run(engine, prompts) == expected
        while engine.rest():
            pass
        assert engine.model.rebalancer is not None
        assert engine.model.rebalancer.num_moves > 0
        engine.clear_prefix_cache()
        assert _run(engine, prompts) == expected


@contextmanager
def _engine(
    case: Case, tmp_path: Path, **changes: Any
) -> Iterator[tuple[Engine, list[list[int]], list[list[int]]]]:
    """An engine of several processes, prompts, and what transformers makes of them."""
    folder, ranks = tmp_path / "model", tmp_path / "ranks"
    folder.mkdir()
    ranks.mkdir()
    _, prompts, expected = expected_outputs(case, folder)
    small = {"dtype": "float32", "kv_cache_bytes": 2**22, "num_threads": 1}
    settings = EngineSettings.model_validate(small | changes)
    engine = start_engine(folder, settings, lambda: ForkedRanks(ranks))
    try:
        yield engine, prompts, expected
    finally:
        engine.close()


def _run(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    for number, prompt in enumerate(prompts):
        engine.add(Request(str(number), prompt, GREEDY))
    found: dict[str, list[int]] = {str(number): [] for number in range(len(prompts))}
    while engine.has_work:
        for output in engine.step():
            found[output.request_id] += output.token_ids
    return list(found.values())
