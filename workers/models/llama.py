"""LlamaForCausalLM: the base that the others vary."""

from workers.models.architecture import Architecture
from workers.models.raw_config import RawConfig


def llama(raw: RawConfig) -> Architecture:
    """Full attention in every layer; biases by configuration."""
    attention_bias = raw.flag("attention_bias", False)
    return Architecture(
        windows=(None,) * raw.integer("num_hidden_layers"),
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=raw.flag("mlp_bias", False),
    )
