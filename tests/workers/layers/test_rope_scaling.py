"""Rotary frequencies equal transformers'."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from workers.layers.rope_scaling import DynamicRope
from workers.layers.rotary import RotaryEmbedding
from workers.models.raw_config import RawConfig
from workers.models.rope_config import parse_rope

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ORIGINAL = {"original_max_position_embeddings": 64}
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "llama3", **LLAMA3, **ORIGINAL},
    {"rope_type": "yarn", "factor": 4.0, **ORIGINAL},
    {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16, "beta_slow": 2, **ORIGINAL},
    {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.3, **ORIGINAL},
    {"rope_type": "yarn", "factor": 8.0, "mscale": 0.7, "mscale_all_dim": 1.1, **ORIGINAL},
    {"rope_type": "yarn", "factor": 4.0, "truncate": False, **ORIGINAL},
    {"rope_type": "dynamic", "factor": 4.0},
]


def _theirs(scaling: dict[str, Any]) -> LlamaRotaryEmbedding:
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=256,
        rope_parameters={"rope_theta": 5000.0, **scaling},
    )
    return LlamaRotaryEmbedding(config)


def _ours(scaling: dict[str, Any]) -> RotaryEmbedding:
    fields = {"rope_theta": 5000.0, "max_position_embeddings": 256, "rope_scaling": scaling}
    rope = parse_rope(RawConfig(fields))
    return RotaryEmbedding(rope, 32, 512, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_rotations_equal_transformers(scaling: dict[str, Any]) -> None:
    positions = torch.arange(256)
    cos, sin = _theirs(scaling)(torch.zeros(1), positions[None])
    rotation = _ours(scaling).rotation(positions)
    assert torch.equal(rotation.positions, positions)
    torch.testing.assert_close(rotation.table[:256, :16], cos[0, :, :16], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(rotation.table[:256, 16:], sin[0, :, 16:], atol=1e-4, rtol=1e-5)


def test_dynamic_scaling_equals_transformers_while_a_sequence_grows() -> None:
    """As in decoding: one token at a time, past the training length."""
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    theirs, ours = _theirs(scaling), _ours(scaling)
    for position in range(250, 300):
        cos, _ = theirs(torch.zeros(1), torch.tensor([[position]]))
        rotation = ours.rotation(torch.tensor([position]))
        found = rotation.table[rotation.positions, :16]
        torch.testing.assert_close(found, cos[0, :, :16], atol=1e-4, rtol=1e-5)


def test_dynamic_scaling_of_a_position_does_not_depend_on_its_batch() -> None:
    rope = DynamicRope(theta=10_000.0, factor=2.0, max_position_embeddings=16)
    frequencies = rope.frequencies(32)
    together = rope.angles(torch.arange(64), frequencies)
    alone = [rope.angles(torch.tensor([position]), frequencies) for position in range(64)]
    torch.testing.assert_close(together, torch.cat(alone), atol=0, rtol=1e-6)
