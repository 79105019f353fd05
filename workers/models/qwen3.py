"""Qwen3ForCausalLM: normalised queries and keys instead of Qwen2's biases."""

from workers.models.architecture import Architecture
from workers.models.layer_windows import layer_windows
from workers.models.raw_config import RawConfig


def qwen3(raw: RawConfig) -> Architecture:
    """Biases by configuration."""
    attention_bias = raw.flag("attention_bias", False)
    return Architecture(
        windows=layer_windows(raw),
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        qk_norm=True,
    )
