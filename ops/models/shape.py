"""The shape of a model: what its config.json says, and which tensors follow from it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Family(Enum):
    """A model family of transformers: the model_type and the architecture in config.json."""

    LLAMA = ("llama", "LlamaForCausalLM")
    MISTRAL = ("mistral", "MistralForCausalLM")
    QWEN2 = ("qwen2", "Qwen2ForCausalLM")
    QWEN3 = ("qwen3", "Qwen3ForCausalLM")


@dataclass(frozen=True)
class Llama3Rope:
    """How Llama 3.1 and later stretch rotary positions beyond the length of their pre-training."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int

    def config(self) -> dict[str, Any]:
        """The `rope_scaling` entry of config.json."""
        return {
            "rope_type": "llama3",
            "factor": self.factor,
            "low_freq_factor": self.low_freq_factor,
            "high_freq_factor": self.high_freq_factor,
            "original_max_position_embeddings": self.original_max_position,
        }


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A dense decoder: sizes in elements, positions in tokens."""

    family: Family
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    rope_theta: float
    tied_head: bool
    rms_norm_eps: float = 1e-5
    rope_scaling: Llama3Rope | None = None
    sliding_window: int | None = None

    @property
    def num_parameters(self) -> int:
        """Elements of all tensors; a tied head counts once."""
        return sum(math.prod(dims) for _, dims in self.tensors())

    def config(self) -> dict[str, Any]:
        """The model's part of config.json, without dtype and special token ids."""
        model_type, architecture = self.family.value
        return {
            "architectures": [architecture],
            "model_type": model_type,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling.config() if self.rope_scaling else None,
            "tie_word_embeddings": self.tied_head,
            "hidden_act": "silu",
            "attention_bias": self.family is Family.QWEN2,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "sliding_window": self.sliding_window,
            "use_cache": True,
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and dimensions of all tensors, in the order in which a forward pass meets them."""
        yield "model.embed_tokens.weight", (self.vocab_size, self.hidden_size)
        for index in range(self.num_layers):
            for name, dims in self._layer():
                yield f"model.layers.{index}.{name}", dims
        yield "model.norm.weight", (self.hidden_size,)
        if not self.tied_head:
            yield "lm_head.weight", (self.vocab_size, self.hidden_size)

    def _layer(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden, inner = self.hidden_size, self.intermediate_size
        query, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        yield "input_layernorm.weight", (hidden,)
        for name, size in (("q_proj", query), ("k_proj", kv), ("v_proj", kv)):
            yield f"self_attn.{name}.weight", (size, hidden)
            if self.family is Family.QWEN2:
                yield f"self_attn.{name}.bias", (size,)
        if self.family is Family.QWEN3:
            yield "self_attn.q_norm.weight", (self.head_dim,)
            yield "self_attn.k_norm.weight", (self.head_dim,)
        yield "self_attn.o_proj.weight", (hidden, query)
        yield "post_attention_layernorm.weight", (hidden,)
        yield "mlp.gate_proj.weight", (inner, hidden)
        yield "mlp.up_proj.weight", (inner, hidden)
        yield "mlp.down_proj.weight", (hidden, inner)
