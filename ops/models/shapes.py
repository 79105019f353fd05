"""Shapes by name: the two demo models, and real models for benchmarks."""

from ops.models.shape import Family, Llama3Rope, Shape

_DEMO = Shape(
    family=Family.LLAMA,
    hidden_size=256,
    intermediate_size=768,
    num_layers=8,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    vocab_size=4096,
    max_position=2048,
    rope_theta=10_000.0,
    tied_head=True,
)

_DEMO_SMALL = Shape(
    family=Family.LLAMA,
    hidden_size=128,
    intermediate_size=384,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    vocab_size=4096,
    max_position=2048,
    rope_theta=10_000.0,
    tied_head=True,
)

# A small Llama of no particular maker, quick on two cores, with heads as large models have them.
_SMOL_110M = Shape(
    family=Family.LLAMA,
    hidden_size=768,
    intermediate_size=2304,
    num_layers=12,
    num_heads=12,
    num_kv_heads=4,
    head_dim=64,
    vocab_size=32_000,
    max_position=4096,
    rope_theta=10_000.0,
    tied_head=True,
)

_QWEN2_0_5B = Shape(
    family=Family.QWEN2,
    hidden_size=896,
    intermediate_size=4864,
    num_layers=24,
    num_heads=14,
    num_kv_heads=2,
    head_dim=64,
    vocab_size=151_936,
    max_position=32_768,
    rope_theta=1_000_000.0,
    rms_norm_eps=1e-6,
    tied_head=True,
)

# The layers of Qwen3-0.6B with a vocabulary of 32,000 instead of 151,936: on CPUs the real head
# would weigh as much as ten layers and hide them.
_QWEN3_0_6B = Shape(
    family=Family.QWEN3,
    hidden_size=1024,
    intermediate_size=3072,
    num_layers=28,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=32_000,
    max_position=40_960,
    rope_theta=1_000_000.0,
    rms_norm_eps=1e-6,
    tied_head=True,
)

_LLAMA_1B = Shape(
    family=Family.LLAMA,
    hidden_size=2048,
    intermediate_size=8192,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    vocab_size=128_256,
    max_position=131_072,
    rope_theta=500_000.0,
    tied_head=True,
    rope_scaling=Llama3Rope(
        factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192
    ),
)

_LLAMA_8B = Shape(
    family=Family.LLAMA,
    hidden_size=4096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128_256,
    max_position=131_072,
    rope_theta=500_000.0,
    tied_head=False,
    rope_scaling=Llama3Rope(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192
    ),
)

_MISTRAL_7B = Shape(
    family=Family.MISTRAL,
    hidden_size=4096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=32_000,
    max_position=32_768,
    rope_theta=10_000.0,
    tied_head=False,
    sliding_window=4096,
)

NAMED: dict[str, Shape] = {
    "demo": _DEMO,
    "demo-small": _DEMO_SMALL,
    "smol-110m": _SMOL_110M,
    "qwen2-0.5b": _QWEN2_0_5B,
    "qwen3-0.6b": _QWEN3_0_6B,
    "llama-1b": _LLAMA_1B,
    "llama-8b": _LLAMA_8B,
    "mistral-7b": _MISTRAL_7B,
}
"""Shapes by the names that operators type."""
