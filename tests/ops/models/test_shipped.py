"""The shipped models: found by name, small, trained, and at home in Hugging Face's tools."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from ops.models import HELD_OUT, SHIPPED, UnknownModelError, resolve
from ops.models.shapes import NAMED

MAX_BYTES = {"demo": 20 << 20, "demo-small": 4 << 20}
MAX_PERPLEXITY = {"demo": 40.0, "demo-small": 40.0}
"""An untrained model stands at the vocabulary's size, 4096."""

WINDOW_TOKENS = 512


def shipped_model(name: str) -> torch.nn.Module:
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        resolve(name), dtype=torch.float32
    )
    return model.eval()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_resolve_to_complete_directories(name: str) -> None:
    files = {path.name for path in resolve(name).iterdir()}
    assert files >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_a_directory_resolves_to_itself(tmp_path: Path) -> None:
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path


def test_an_unknown_model_is_refused_with_what_would_be_accepted(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match=r"got .*nowhere.*demo, demo-small or an existing"):
        resolve(tmp_path / "nowhere")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_fits_into_the_package(name: str) -> None:
    assert sum(path.stat().st_size for path in resolve(name).iterdir()) <= MAX_BYTES[name]


def test_both_models_share_one_tokenizer() -> None:
    texts = {(resolve(name) / "tokenizer.json").read_text(encoding="utf-8") for name in SHIPPED}
    assert len(texts) == 1


@pytest.mark.parametrize("name", SHIPPED)
def test_weights_have_the_named_shape(name: str) -> None:
    model = shipped_model(name)
    assert {key: tuple(value.shape) for key, value in model.named_parameters()} == dict(
        NAMED[name].tensors()
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_the_model_has_learned_what_python_documentation_reads_like(name: str) -> None:
    """Perplexity on chapters and modules that training never saw."""
    text = HELD_OUT.read_text(encoding="utf-8")
    ids = Tokenizer.from_file(str(resolve(name) / "tokenizer.json")).encode(text).ids
    windows = torch.tensor(ids[: len(ids) // WINDOW_TOKENS * WINDOW_TOKENS]).view(-1, WINDOW_TOKENS)
    with torch.inference_mode():
        loss = shipped_model(name)(input_ids=windows, labels=windows).loss
    assert float(loss.exp()) < MAX_PERPLEXITY[name]


def test_the_model_ends_its_turn() -> None:
    """Greedy answers come to the end token, so that chats stop by themselves."""
    tokenizer = Tokenizer.from_file(str(resolve("demo") / "tokenizer.json"))
    prompt = "<|bos|><|user|>\nWho are you?<|end|>\n<|assistant|>\n"
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False).ids])
    model: Any = shipped_model("demo")
    answer = model.generate(ids, max_new_tokens=200, do_sample=False)[0, ids.shape[1] :].tolist()
    assert "demo model of Trunkline" in tokenizer.decode(answer)
    assert tokenizer.id_to_token(answer[-1]) == "<|end|>"
