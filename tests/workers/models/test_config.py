"""What is read out of config.json, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.golden.models import CASES, Case
from workers.layers.rope_scaling import DefaultRope, LinearRope, Llama3Rope
from workers.models.architecture import MixtureOfExperts
from workers.models.config import ModelConfig
from workers.models.errors import CheckpointError, UnsupportedModelError
from workers.models.raw_config import RawConfig

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
}
QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "head_dim": 32, "num_hidden_layers": 3}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"]}


def parse(fields: dict[str, Any], generation: dict[str, Any] | None = None) -> ModelConfig:
    return ModelConfig.parse(RawConfig(fields), RawConfig(generation or {}))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_what_transformers_saves_is_read_back(case: Case, tmp_path: Path) -> None:
    theirs = case.build_config()
    theirs.architectures = [type(theirs).__name__.replace("Config", "ForCausalLM")]
    theirs.save_pretrained(tmp_path)
    config = ModelConfig.read(tmp_path)
    assert config.architecture == theirs.architectures[0]
    assert (config.num_heads, config.num_kv_heads) == (
        theirs.num_attention_heads,
        theirs.num_key_value_heads,
    )
    assert config.rms_norm_eps == theirs.rms_norm_eps
    assert config.tie_word_embeddings == theirs.tie_word_embeddings
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2,))


def test_older_and_newer_rope_fields_mean_the_same() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 64
    old = parse(LLAMA | {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **scaling}})
    new = {"rope_theta": 5e5, "rope_type": "llama3", **scaling}
    assert parse(LLAMA | {"rope_parameters": new}).rope == old.rope
    assert old.rope == Llama3Rope(5e5, 8.0, 1.0, 4.0, 64)


def test_oldest_rope_fields_and_none_at_all() -> None:
    oldest = parse(LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}})
    assert oldest.rope == LinearRope(10_000.0, 2.0)
    assert parse(LLAMA | {"rope_scaling": None}).rope == DefaultRope(10_000.0)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({}, 128),
        ({"rope_type": "linear", "factor": 4.0}, 512),
        ({"rope_type": "dynamic", "factor": 2.0}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
    ],
)
def test_scaling_lengthens_sequences(scaling: dict[str, Any], expected: int) -> None:
    assert parse(LLAMA | {"rope_scaling": scaling}).max_sequence_len == expected


def test_absent_fields_take_their_defaults() -> None:
    fields = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
    config = parse(fields)
    assert (config.num_kv_heads, config.head_dim) == (4, 16)
    assert config.dtype == torch.float32
    assert not config.tie_word_embeddings


def test_the_generation_config_has_precedence_for_eos() -> None:
    assert parse(LLAMA, {"eos_token_id": [7, 9]}).eos_token_ids == (7, 9)
    assert parse(LLAMA, {"bos_token_id": 5}).eos_token_ids == (2,)


def test_old_and_new_names_of_the_dtype() -> None:
    assert parse(LLAMA | {"torch_dtype": "bfloat16"}).dtype == torch.bfloat16
    assert parse(LLAMA | {"dtype": "float16"}).dtype == torch.float16


def test_mistral_windows_cover_all_layers_or_none() -> None:
    assert parse(MISTRAL | {"sliding_window": 32}).windows == (32, 32)
    assert parse(MISTRAL | {"sliding_window": None}).windows == (None, None)
    assert parse(MISTRAL).windows == (4096, 4096)


def test_qwen_windows_by_layer() -> None:
    windowed = QWEN3 | {"use_sliding_window": True, "sliding_window": 32}
    assert parse(windowed | {"max_window_layers": 1}).windows == (None, 32, 32)
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert parse(windowed | {"layer_types": kinds}).windows == (32, None, 32)
    assert parse(QWEN3 | {"sliding_window": 32, "layer_types": kinds}).windows == (None,) * 3


MIXTRAL = LLAMA | {"architectures": ["MixtralForCausalLM"], "num_local_experts": 8}
QWEN3_MOE = QWEN3 | {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 16}
QWEN2_MOE = QWEN3_MOE | {"architectures": ["Qwen2MoeForCausalLM"]}


def experts(fields: dict[str, Any]) -> MixtureOfExperts:
    found = parse(fields).layer.experts
    assert found is not None
    return found


def test_mixtral_has_experts_in_every_layer() -> None:
    found = experts(MIXTRAL)
    assert (found.num_experts, found.experts_per_token, found.intermediate_size) == (8, 2, 96)
    assert found.sparse_layers == (True, True)
    assert found.renormalises
    assert parse(MIXTRAL).windows == (None, None)
    assert parse(MIXTRAL | {"sliding_window": 32}).windows == (32, 32)


def test_qwen_has_experts_in_some_layers() -> None:
    assert experts(QWEN3_MOE).sparse_layers == (True, True, True)
    assert experts(QWEN3_MOE | {"decoder_sparse_step": 2}).sparse_layers == (False, True, False)
    assert experts(QWEN3_MOE | {"mlp_only_layers": [0, 2]}).sparse_layers == (False, True, False)
    dense = parse(QWEN3_MOE | {"mlp_only_layers": [0, 1, 2]})
    assert dense.layer.experts is None
    assert dense.has_dense_layers
    assert parse(QWEN3_MOE | {"num_experts": 0}).layer.experts is None


def test_qwen_experts_renormalise_if_told_so() -> None:
    assert not experts(QWEN3_MOE).renormalises
    assert experts(QWEN3_MOE | {"norm_topk_prob": True}).renormalises


def test_both_names_of_the_number_of_experts() -> None:
    fields = {name: value for name, value in QWEN3_MOE.items() if name != "num_experts"}
    assert experts(fields | {"num_local_experts": 12}).num_experts == 12
    assert experts(fields).num_experts == 128


def test_only_qwen2_shares_an_expert() -> None:
    assert experts(QWEN3_MOE).shared_intermediate_size == 0
    sized = QWEN2_MOE | {"shared_expert_intermediate_size": 72}
    assert experts(sized).shared_intermediate_size == 72


def test_windows_of_qwen_with_experts() -> None:
    window = {"use_sliding_window": True, "sliding_window": 32}
    assert parse(QWEN3_MOE | window).windows == (32,) * 3
    assert parse(QWEN3_MOE | {"sliding_window": 32}).windows == (None,) * 3
    assert parse(QWEN2_MOE | window).windows == (32, None, 32)
    assert parse(QWEN2_MOE | window | {"max_window_layers": 1}).windows == (32, None, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts_per_tok": 17}, "'num_experts_per_tok' is 17, expected 1 to 16"),
        ({"num_experts_per_tok": 0}, "'num_experts_per_tok' is 0, expected 1 to 16"),
        ({"decoder_sparse_step": 0}, "'decoder_sparse_step' is 0, expected at least 1"),
    ],
)
def test_experts_that_cannot_be_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        parse(QWEN3_MOE | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            r"unsupported architecture \['GPT2LMHeadModel'\]; supported: LlamaForCausalLM, "
            "MistralForCausalLM, MixtralForCausalLM, Qwen2ForCausalLM, Qwen2MoeForCausalLM, "
            "Qwen3ForCausalLM, Qwen3MoeForCausalLM",
        ),
        ({"architectures": None}, r"unsupported architecture \[\]; supported: Llama"),
        ({"hidden_act": "gelu"}, "LlamaForCausalLM: hidden_act 'gelu' is not supported"),
        ({"quantization_config": {"bits": 4}}, "lacks 'quant_method'"),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            r"quantization_config\.quant_method 'fp8'; known: awq, compressed-tensors, gptq",
        ),
        ({"rope_scaling": {"rope_type": "longrope"}}, "'longrope'; supported: default, dynamic"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"vocab_size": None}, "lacks 'vocab_size'"),
        ({"vocab_size": "many"}, "'vocab_size' is 'many', expected a whole number"),
        ({"num_key_value_heads": 3}, "cannot share 3 key/value heads"),
        ({"dtype": "float8"}, "unsupported dtype 'float8'; supported: float32"),
        ({"rope_scaling": {"rope_type": "linear"}}, "lacks 'factor'"),
    ],
)
def test_what_is_not_supported_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        parse(LLAMA | changes)


def test_a_layer_type_that_is_not_known_is_named() -> None:
    changes = {"use_sliding_window": True, "layer_types": ["full_attention", "linear", "linear"]}
    with pytest.raises(UnsupportedModelError, match="linear"):
        parse(QWEN3 | changes)


@pytest.mark.parametrize("content", [None, "{", json.dumps([1])])
def test_a_file_that_cannot_be_read_is_named(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ModelConfig.read(tmp_path)
