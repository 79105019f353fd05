"""MistralForCausalLM: Llama with a sliding window in every layer."""

from workers.models.architecture import Architecture
from workers.models.raw_config import RawConfig


def mistral(raw: RawConfig) -> Architecture:
    """A null `sliding_window` means full attention; an absent one the original model's."""
    window = None if raw.is_null("sliding_window") else raw.integer("sliding_window", 4096)
    return Architecture(windows=(window,) * raw.integer("num_hidden_layers"))
