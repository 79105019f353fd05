"""Quantized checkpoints compute what transformers computes with the weights they stand for.

The same quantized weights are stored twice: packed, for Trunkline, and dequantized, for
transformers. Greedy tokens in float32 are equal.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from tests.golden.driver import Driver
from tests.golden.models import VOCAB_SIZE, Case, save_random
from tests.workers.quantization import packers
from tests.workers.quantization.packers import Quantized, Tensors
from workers.models.loader import load_model

NUM_OUTPUT = 48
GROUP_SIZE = 32
HIDDEN, INNER = 64, 96


class Stored(NamedTuple):
    """One kind of quantized checkpoint."""

    id: str
    config: Callable[..., PretrainedConfig]
    fields: dict[str, Any]
    """quantization_config"""
    bits: int
    symmetric: bool
    group_size: int | None
    """None for one scale per output."""
    pack: Callable[[Quantized], Tensors]
    order: Callable[[str], int] | None = None
    """From a module's name to the seed of its inputs' order."""


def _compressed(layout: str, inputs: dict[str, Any] | None = None, **weights: Any) -> Any:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def _same_for_one_input(module: str) -> int:
    return len(module.rsplit(".", 1)[0])


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP_SIZE, "desc_act": True}
CHANNEL: dict[str, Any] = {"num_bits": 8, "strategy": "channel", "symmetric": True}
EXPERTS = partial(
    Qwen3MoeConfig,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=INNER,
    norm_topk_prob=True,
)
DYNAMIC = {"num_bits": 8, "strategy": "token", "symmetric": True, "dynamic": True}
CASES = [
    Stored(
        "gptq-act-order",
        LlamaConfig,
        GPTQ,
        4,
        False,
        GROUP_SIZE,
        packers.gptq,
        _same_for_one_input,
    ),
    Stored("gptq-orders-differ", LlamaConfig, GPTQ, 4, True, GROUP_SIZE, packers.gptq, len),
    Stored("gptq-int8", Qwen2Config, GPTQ | {"bits": 8}, 8, False, GROUP_SIZE, packers.gptq),
    Stored(
        "awq",
        Qwen2Config,
        {"quant_method": "awq", "bits": 4, "group_size": GROUP_SIZE, "version": "gemm"},
        4,
        False,
        GROUP_SIZE,
        packers.awq,
    ),
    Stored(
        "gptq-experts",
        EXPERTS,
        GPTQ,
        4,
        False,
        GROUP_SIZE,
        packers.gptq,
        _same_for_one_input,
    ),
    Stored(
        "int8-experts",
        EXPERTS,
        _compressed("int-quantized", **CHANNEL),
        8,
        True,
        None,
        lambda weight: packers.integer_tensors(weight, symmetric=True),
    ),
    Stored(
        "packed",
        Qwen3Config,
        _compressed(
            "pack-quantized",
            num_bits=4,
            strategy="group",
            group_size=GROUP_SIZE,
            symmetric=True,
        ),
        4,
        True,
        GROUP_SIZE,
        lambda weight: packers.packed_tensors(weight, symmetric=True),
    ),
    Stored(
        "int8-weight-only",
        Qwen3Config,
        _compressed("int-quantized", **CHANNEL),
        8,
        True,
        None,
        lambda weight: packers.integer_tensors(weight, symmetric=True),
    ),
    Stored(
        "int8-activations",
        LlamaConfig,
        _compressed("int-quantized", DYNAMIC, **CHANNEL),
        8,
        True,
        None,
        lambda weight: packers.integer_tensors(weight, symmetric=True),
    ),
]


def _save(stored: Stored, plain: Path, packed: Path) -> None:
    """A random model of the case: dequantized into `plain`, as a checkpoint into `packed`."""
    save_random(Case(stored.id, lambda: _config(stored.config)), plain)
    tensors = load_file(plain / "model.safetensors")
    quantized: Tensors = {}
    for name in list(tensors):
        module = name.removesuffix(".weight")
        if not module.endswith("_proj") or name.endswith("bias"):
            quantized[name] = tensors[name]
            continue
        weight = _quantized(stored, module, tensors[name])
        tensors[name] = weight.dequantized()
        quantized |= {f"{module}.{key}": value for key, value in stored.pack(weight).items()}
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    save_file(quantized, packed / "model.safetensors", {"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    content = json.dumps(config | {"quantization_config": stored.fields})
    (packed / "config.json").write_text(content)


def _quantized(stored: Stored, module: str, weight: torch.Tensor) -> Quantized:
    inputs = weight.shape[1]
    size = stored.group_size or inputs
    groups = [column // size for column in range(inputs)]
    if stored.order is not None:
        Random(stored.order(module)).shuffle(groups)
    return packers.round_to_nearest(weight, size, stored.bits, groups, symmetric=stored.symmetric)


def _config(kind: Callable[..., PretrainedConfig]) -> PretrainedConfig:
    return kind(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.15,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )


def _round_inputs(_module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """What a W8A8 layer sees of its input: each row in steps of a 127th of its largest value."""
    step = inputs[0].abs().amax(-1, keepdim=True) / 127
    return ((inputs[0] / step).round() * step,)


@pytest.mark.parametrize("stored", CASES, ids=lambda stored: stored.id)
def test_greedy_tokens(stored: Stored, tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    plain.mkdir()
    packed.mkdir()
    _save(stored, plain, packed)
    theirs: Any = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    if stored.id == "int8-activations":
        for name, module in theirs.named_modules():
            if name.endswith("_proj"):
                module.register_forward_pre_hook(_round_inputs)
    prompt = Random(3).choices(range(VOCAB_SIZE), k=21)
    output = theirs.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=NUM_OUTPUT,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    expected = output[0, len(prompt) :].tolist()
    ours = Driver(load_model(packed, torch.float32, "cpu", "reference"), 96, 16)
    assert ours.greedy(prompt, NUM_OUTPUT) == expected
    assert len(set(expected)) > 5
