"""Qwen2MoeForCausalLM: Qwen2 with experts, and one shared expert that every row goes to."""

from workers.models.architecture import Architecture
from workers.models.expert_config import qwen_experts
from workers.models.layer_windows import layer_windows
from workers.models.raw_config import RawConfig


def qwen2_moe(raw: RawConfig) -> Architecture:
    """Without `layer_types`, every other layer below `max_window_layers` may have a window."""
    upper = raw.integer("max_window_layers", 28)
    kinds = [
        "sliding_attention" if layer % 2 == 0 and layer < upper else "full_attention"
        for layer in range(raw.integer("num_hidden_layers"))
    ]
    return Architecture(
        windows=layer_windows(raw, kinds),
        qkv_bias=raw.flag("qkv_bias", True),
        experts=qwen_experts(
            raw,
            num_experts=60,
            experts_per_token=4,
            intermediate_size=1408,
            shared_intermediate_size=raw.integer("shared_expert_intermediate_size", 5632),
        ),
    )
