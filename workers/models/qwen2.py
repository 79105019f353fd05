"""Qwen2ForCausalLM: biased queries, keys and values; upper layers may have a sliding window."""

from workers.models.architecture import Architecture
from workers.models.layer_windows import layer_windows
from workers.models.raw_config import RawConfig


def qwen2(raw: RawConfig) -> Architecture:
    """The biases are part of the architecture, not of the configuration."""
    return Architecture(windows=layer_windows(raw), qkv_bias=True)
