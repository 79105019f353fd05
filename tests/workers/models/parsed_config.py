"""Configurations of models that need no files."""

from typing import Any

from workers.models.config import ModelConfig
from workers.models.raw_config import RawConfig

_FIELDS: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 199,
    "max_position_embeddings": 64,
}


def parsed(**changes: Any) -> ModelConfig:
    """A configuration that differs from a small Llama's in some fields."""
    return ModelConfig.parse(RawConfig(_FIELDS | changes), RawConfig({}))


def mixtral(**changes: Any) -> ModelConfig:
    """One with 6 experts in every layer."""
    fields = {"architectures": ["MixtralForCausalLM"], "num_local_experts": 6}
    return parsed(**(fields | changes))
