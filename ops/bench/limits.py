"""The time below which work cannot be done: operations over the peak, or bytes over bandwidth."""

import json
from pathlib import Path
from typing import NamedTuple

from ops.bench.hardware import Hardware


class Sizes(NamedTuple):
    """What of a model moves and multiplies, in elements."""

    layers: int
    """Weights of all layers."""
    head: int
    kv_token: int
    """Keys and values of one token."""
    weight_bytes: float
    """Of one weight."""
    kv_bytes: float
    """Of one element of the cache."""


def sizes(folder: Path, weight_bytes: float, kv_bytes: float, stored_bytes: int = 2) -> Sizes:
    """The sizes of a model of dense layers whose checkpoint has `stored_bytes` for each weight.

    Raises OSError if `folder` holds no config.json.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors")) // stored_bytes
    head = config["vocab_size"] * config["hidden_size"]
    heads = config.get("num_key_value_heads", config["num_attention_heads"])
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return Sizes(
        layers=stored - head * (1 if config.get("tie_word_embeddings") else 2),
        head=head,
        kv_token=2 * config["num_hidden_layers"] * heads * head_dim,
        weight_bytes=weight_bytes,
        kv_bytes=kv_bytes,
    )


def prefill_seconds(model: Sizes, requests: int, tokens: int, hardware: Hardware) -> float:
    """Prompts pass the layers once, and the head for the last token only; weights are read once."""
    flop = 2 * requests * (model.layers * tokens + model.head)
    read = (model.layers + model.head) * model.weight_bytes
    return max(flop / hardware.gemm_flop_per_s, read / hardware.read_bytes_per_s)


def step_seconds(model: Sizes, requests: int, tokens: float, hardware: Hardware) -> float:
    """A decode step of sequences of `tokens`: it reads all weights, and the KV of each."""
    weights = model.layers + model.head
    read = weights * model.weight_bytes + requests * tokens * model.kv_token * model.kv_bytes
    flop = 2 * weights * requests
    return max(flop / hardware.gemm_flop_per_s, read / hardware.read_bytes_per_s)


def batch_seconds(
    model: Sizes, requests: int, prompt_tokens: int, output_tokens: int, hardware: Hardware
) -> float:
    """Prefill of all, then a decode step for each further token."""
    prefill_s = prefill_seconds(model, requests, prompt_tokens, hardware)
    mean_tokens = prompt_tokens + output_tokens / 2
    step_s = step_seconds(model, requests, mean_tokens, hardware)
    return prefill_s + (output_tokens - 1) * step_s
