"""MixtralForCausalLM: Mistral with experts in every layer (Jiang et al., 2024)."""

from workers.models.architecture import Architecture, ExpertNames
from workers.models.expert_config import mixture_of_experts
from workers.models.raw_config import RawConfig

NAMES = ExpertNames(block="block_sparse_moe", gate="w1", up="w3", down="w2")


def mixtral(raw: RawConfig) -> Architecture:
    """Without a `sliding_window` attention is full."""
    num_layers = raw.integer("num_hidden_layers")
    window = raw.integer("sliding_window") if "sliding_window" in raw else None
    return Architecture(
        windows=(window,) * num_layers,
        experts=mixture_of_experts(
            NAMES,
            num_experts=raw.integer("num_local_experts", 8),
            experts_per_token=raw.integer("num_experts_per_tok", 2),
            intermediate_size=raw.integer("intermediate_size"),
            renormalises=True,
            sparse_layers=(True,) * num_layers,
        ),
    )
