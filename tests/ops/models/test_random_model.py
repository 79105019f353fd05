"""Random models load in transformers, whatever their family and however they are cut up."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from ops.models.random_model import Dtype, plan_shards, widened_tokenizer, write_random_model
from ops.models.shape import Shape
from ops.models.shapes import NAMED

ONE_OF_EACH_FAMILY = ("llama-1b", "mistral-7b", "qwen2-0.5b", "qwen3-0.6b")


def tiny(name: str) -> Shape:
    """The named shape with few and narrow layers, everything else kept."""
    return replace(
        NAMED[name],
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=5000,
    )


def load(folder: Path) -> torch.nn.Module:
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert isinstance(model, torch.nn.Module)
    return model.eval()


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_transformers_loads_and_runs_it(name: str, tmp_path: Path) -> None:
    shape = tiny(name)
    write_random_model(shape, tmp_path, Dtype.FLOAT32)
    model = load(tmp_path)
    with torch.inference_mode():
        logits = model(input_ids=torch.arange(32).view(2, 16)).logits
    assert logits.shape == (2, 16, shape.vocab_size)
    assert 0.05 < float(logits.std()) < 5
    assert sum(p.numel() for p in model.parameters()) == shape.num_parameters


def test_shards_hold_the_same_weights_as_one_file(tmp_path: Path) -> None:
    shape = tiny("llama-1b")
    write_random_model(shape, tmp_path / "one")
    write_random_model(shape, tmp_path / "many", shard_bytes=100_000)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    one, many = load(tmp_path / "one").state_dict(), load(tmp_path / "many").state_dict()
    assert one.keys() == many.keys()
    assert all(torch.equal(one[key], many[key]) for key in one)


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    shape = tiny("qwen3-0.6b")
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_random_model(shape, tmp_path / folder, seed=seed)
    first, again, other = (
        (tmp_path / folder / "model.safetensors").read_bytes() for folder in "abc"
    )
    assert first == again
    assert first != other


@given(st.integers(1, 1 << 20), st.sampled_from(list(Dtype)))
def test_shards_keep_every_tensor_once_and_in_order(shard_bytes: int, dtype: Dtype) -> None:
    shape = tiny("llama-8b")
    shards = list(plan_shards(shape, dtype, shard_bytes))
    assert [tensor for shard in shards for tensor in shard] == list(shape.tensors())
    for shard in shards:
        sizes = [torch.Size(dims).numel() * dtype.torch.itemsize for _, dims in shard]
        assert len(shard) == 1 or sum(sizes) <= shard_bytes


def test_every_id_has_a_text() -> None:
    tokenizer = widened_tokenizer(5000)
    assert tokenizer.get_vocab_size() == 5000
    assert all(tokenizer.decode([i], skip_special_tokens=False) for i in range(5000))


def test_prompts_encode_as_with_the_demo_tokenizer() -> None:
    text = "def word4999(): return 'word4999'"
    assert widened_tokenizer(5000).encode(text).ids == widened_tokenizer(4096).encode(text).ids


def test_a_vocabulary_below_the_tokenizers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 100, expected at least 4096"):
        write_random_model(replace(tiny("llama-1b"), vocab_size=100), tmp_path)


def test_the_tokenizer_beside_the_weights_can_be_read(tmp_path: Path) -> None:
    write_random_model(tiny("llama-1b"), tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.decode([4500]) == " word4500"


def test_the_command_names_the_shapes_it_knows(tmp_path: Path) -> None:
    import typer

    from ops.models import random_model

    app = typer.Typer()
    app.command()(random_model.main)
    result = CliRunner().invoke(app, ["llama-9000b", str(tmp_path)])
    assert result.exit_code == 2
    assert "smol-110m" in result.output
