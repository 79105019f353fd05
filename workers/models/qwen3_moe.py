"""Qwen3MoeForCausalLM: Qwen3 with experts in some or all layers."""

from workers.models.architecture import Architecture
from workers.models.expert_config import qwen_experts
from workers.models.raw_config import RawConfig


def qwen3_moe(raw: RawConfig) -> Architecture:
    """Biases by configuration; a sliding window is every layer's."""
    attention_bias = raw.flag("attention_bias", False)
    has_window = raw.flag("use_sliding_window", False) and not raw.is_null("sliding_window")
    window = raw.integer("sliding_window", 4096) if has_window else None
    return Architecture(
        windows=(window,) * raw.integer("num_hidden_layers"),
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        qk_norm=True,
        experts=qwen_experts(raw, num_experts=128, experts_per_token=8, intermediate_size=768),
    )
