"""Random small models of every supported shape, saved as transformers saves them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCAB_SIZE = 199


class Case(NamedTuple):
    """A model shape to compare with transformers."""

    id: str
    build_config: Callable[[], PretrainedConfig]


def _case(case_id: str, config_class: type[PretrainedConfig], **overrides: Any) -> Case:
    fields: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 96,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.15,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return Case(case_id, lambda: config_class(**(fields | overrides)))


def _rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10_000.0, **parameters}


LLAMA3_ROPE = _rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
YARN_ROPE = _rope("yarn", factor=4.0, original_max_position_embeddings=64)

CASES: list[Case] = [
    _case("llama", LlamaConfig),
    _case("llama-tied", LlamaConfig, tie_word_embeddings=True),
    _case("llama-bias", LlamaConfig, attention_bias=True, mlp_bias=True),
    _case("llama-mha", LlamaConfig, num_key_value_heads=6),
    _case("llama-mqa", LlamaConfig, num_key_value_heads=1),
    _case("llama-rope-llama3", LlamaConfig, rope_parameters=LLAMA3_ROPE),
    _case("llama-rope-linear", LlamaConfig, rope_parameters=_rope("linear", factor=4.0)),
    _case(
        "llama-rope-dynamic",
        LlamaConfig,
        max_position_embeddings=64,
        rope_parameters=_rope("dynamic", factor=4.0),
    ),
    _case("llama-rope-yarn", LlamaConfig, rope_parameters=YARN_ROPE),
    _case("mistral-window", MistralConfig, sliding_window=24),
    _case("mistral-full", MistralConfig, sliding_window=None),
    _case("qwen2", Qwen2Config, num_attention_heads=3, num_key_value_heads=1),
    _case(
        "qwen2-window",
        Qwen2Config,
        num_attention_heads=3,
        num_key_value_heads=3,
        use_sliding_window=True,
        sliding_window=20,
        max_window_layers=1,
    ),
    _case("qwen3", Qwen3Config, head_dim=16),
    _case("qwen3-tied", Qwen3Config, tie_word_embeddings=True, head_dim=32),
    _case("mixtral", MixtralConfig, num_local_experts=8, num_experts_per_tok=2),
    _case(
        "mixtral-window",
        MixtralConfig,
        num_local_experts=4,
        num_experts_per_tok=1,
        sliding_window=24,
    ),
    _case(
        "qwen3-moe",
        Qwen3MoeConfig,
        head_dim=16,
        num_experts=16,
        num_experts_per_tok=4,
        moe_intermediate_size=48,
        norm_topk_prob=True,
    ),
    _case(
        "qwen3-moe-some-dense",
        Qwen3MoeConfig,
        num_hidden_layers=4,
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=40,
        decoder_sparse_step=2,
        mlp_only_layers=[3],
        tie_word_embeddings=True,
    ),
    _case(
        "qwen2-moe",
        Qwen2MoeConfig,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=112,
    ),
    _case(
        "qwen2-moe-window",
        Qwen2MoeConfig,
        num_experts=4,
        num_experts_per_tok=4,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=48,
        mlp_only_layers=[1],
        use_sliding_window=True,
        sliding_window=20,
        max_window_layers=1,
    ),
]


def save_random(case: Case, path: Path, max_shard_size: str = "5GB") -> None:
    """Save a model of the case with random float32 weights, norms and biases, always the same."""
    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM.from_config(case.build_config())  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif "norm" in name:
                parameter.normal_(1, 0.1)
    model.save_pretrained(path, max_shard_size=max_shard_size)
