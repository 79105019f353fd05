"""Models compute what transformers computes, whatever the blocks and chunks."""

from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.golden.driver import Driver
from tests.golden.models import CASES, VOCAB_SIZE, save_random
from workers.layers.attention_registry import ATTENTION_BACKENDS
from workers.models.loader import load_model

NUM_OUTPUT = 64
MAX_TOKENS = 160


class Golden(NamedTuple):
    """A saved model and transformers' opinion of it."""

    folder: Path
    theirs: Any

    def logits(self, token_ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = self.theirs(torch.tensor([token_ids])).logits[0]
        return logits

    def greedy(self, prompt: list[int]) -> list[int]:
        output = self.theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=NUM_OUTPUT,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        tokens: list[int] = output[0, len(prompt) :].tolist()
        return tokens


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.id)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    folder = tmp_path_factory.mktemp(request.param.id)
    save_random(request.param, folder)
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    theirs.generation_config.eos_token_id = None
    return Golden(folder, theirs)


def driver(
    golden: Golden, block_size: int, attention: str = "auto", dtype: torch.dtype = torch.float32
) -> Driver:
    return Driver(load_model(golden.folder, dtype, "cpu", attention), MAX_TOKENS, block_size)


def prompt_of(length: int) -> list[int]:
    return Random(length).choices(range(VOCAB_SIZE), k=length)


@pytest.mark.parametrize("attention", ATTENTION_BACKENDS.names)
@pytest.mark.parametrize("length", [1, 16, 17, 61])
def test_logits_of_a_whole_prompt(golden: Golden, attention: str, length: int) -> None:
    prompt = prompt_of(length)
    found = driver(golden, 16, attention).feed(prompt)
    torch.testing.assert_close(found, golden.logits(prompt), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize(("chunk", "block_size"), [(1, 16), (7, 16), (16, 16), (25, 4)])
def test_logits_of_a_prompt_in_chunks(
    golden: Golden, chunk: int, block_size: int, attention: str
) -> None:
    """Chunks end within and at the borders of blocks and windows."""
    prompt = prompt_of(61)
    fed = driver(golden, block_size, attention)
    found = [fed.feed(prompt[start : start + chunk]) for start in range(0, len(prompt), chunk)]
    torch.testing.assert_close(torch.cat(found), golden.logits(prompt), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 15, 40])
def test_greedy_tokens(golden: Golden, length: int) -> None:
    """Also where a sequence outgrows its training length and dynamic scaling sets in."""
    prompt = prompt_of(length)
    assert driver(golden, 16).greedy(prompt, NUM_OUTPUT) == golden.greedy(prompt)


def test_bfloat16_is_close(golden: Golden) -> None:
    """As close to float32 as transformers' own bfloat16 is, with some margin.

    In the middle of all rows: where two experts are nearly as likely, rounding may send a row to
    the other one.
    """
    prompt = prompt_of(61)
    exact = golden.logits(prompt)
    theirs = AutoModelForCausalLM.from_pretrained(golden.folder, dtype=torch.bfloat16)
    with torch.inference_mode():
        their_logits = theirs(torch.tensor([prompt])).logits[0].float()
    found = driver(golden, 16, dtype=torch.bfloat16).feed(prompt)
    assert _median_error(found, exact) <= 1.5 * _median_error(their_logits, exact) + 1e-4


def _median_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Of the rows' mean squared errors."""
    return float((found - exact).square().mean(dim=1).median())
