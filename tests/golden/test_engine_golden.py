"""The engine's greedy tokens equal transformers', however the work is cut up.

Alone, in a batch of mixed lengths, with chunked prefill, with prefix hits, after preemptions, and
as samples that share a prompt: always the same tokens.
"""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM

from cluster.settings import EngineSettings
from tests.golden.models import CASES, VOCAB_SIZE, Case, save_random
from workers.engine.llm import LLM
from workers.engine.sampling_params import SamplingParams
from workers.layers.kv_cache import KVCache
from workers.models.config import ModelConfig

OUTPUT = 64
EOS = 2
LENGTHS = (1, 15, 16, 17, 45)
"""Prompt lengths around the borders of blocks and windows."""
GREEDY = SamplingParams(temperature=0.0, max_tokens=OUTPUT, ignore_eos=True)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.id)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder, prompts, expected outputs) of one architecture."""
    chosen: Case = request.param
    torch.set_num_threads(1)
    return expected_outputs(chosen, tmp_path_factory.mktemp(chosen.id))


def expected_outputs(case: Case, folder: Path) -> tuple[Path, list[list[int]], list[list[int]]]:
    """The model saved in `folder`, prompts, and what transformers makes of them."""
    save_random(case, folder)
    Tokenizer(WordLevel({"a": 0})).save(str(folder / "tokenizer.json"))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reference.generation_config.eos_token_id = None
    random = Random(7)
    prompts = [random.choices(range(VOCAB_SIZE), k=length) for length in LENGTHS]
    return folder, prompts, [_expected(reference, prompt) for prompt in prompts]


def _expected(reference: Any, prompt: list[int]) -> list[int]:
    output = reference.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=OUTPUT,
        do_sample=False,
        pad_token_id=0,
    )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


def make_llm(folder: Path, **changes: Any) -> LLM:
    # One thread: more only get into each other's way with models this small.
    settings = {"dtype": "float32", "kv_cache_bytes": 2**24, "num_threads": 1, **changes}
    return LLM(folder, EngineSettings.model_validate(settings))


def outputs(llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    completions = llm.generate(prompts, GREEDY)
    llm.engine.check_integrity()
    return [completion.samples[0].token_ids for completion in completions]


def test_alone_in_a_batch_and_with_prefix_hits(case: Any) -> None:
    folder, prompts, expected = case
    llm = make_llm(folder)
    assert [outputs(llm, [prompt])[0] for prompt in prompts] == expected
    again = llm.generate(prompts, GREEDY)
    assert [completion.samples[0].token_ids for completion in again] == expected
    assert [c.cached_prompt_tokens for c in again] == [0, 0, 0, 16, 44]
    llm.engine.clear_prefix_cache()
    assert outputs(llm, prompts) == expected


@pytest.mark.parametrize("budget", [3, 16, 33])
def test_chunks_of_any_size(case: Any, budget: int) -> None:
    folder, prompts, expected = case
    assert outputs(make_llm(folder, max_num_batched_tokens=budget), prompts) == expected


@pytest.mark.parametrize("attention", ["reference", "sdpa"])
def test_other_attention_backends(case: Any, attention: str) -> None:
    folder, prompts, expected = case
    assert outputs(make_llm(folder, attention=attention), prompts) == expected


def test_after_preemptions(case: Any) -> None:
    """When outputs turn out longer than predicted, some are preempted, and all are right."""
    folder, prompts, expected = case
    config = ModelConfig.read(folder)
    num_blocks = 16 if None in config.windows else 9  # windows give blocks back before
    cache_bytes = num_blocks * KVCache.bytes_per_block(config, 16, torch.float32)
    llm = make_llm(folder, kv_cache_bytes=cache_bytes, max_num_batched_tokens=16)
    short = SamplingParams(temperature=0.0, max_tokens=1, stop_token_ids=tuple(range(VOCAB_SIZE)))
    llm.generate([[3]] * 8, short)
    unknown = SamplingParams(temperature=0.0, max_tokens=OUTPUT)
    found = llm.generate(prompts, unknown)
    assert llm.engine.stats.preemptions > 0
    assert [c.samples[0].token_ids for c in found] == [_until_eos(tokens) for tokens in expected]
    llm.engine.check_integrity()


def _until_eos(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens


def test_samples_that_share_a_prompt(case: Any) -> None:
    """Each of n samples equals the first one when greedy; their blocks are shared, then copied."""
    folder, prompts, expected = case
    llm = make_llm(folder)
    params = SamplingParams(temperature=0.0, max_tokens=OUTPUT, ignore_eos=True, n=3)
    for completion, tokens in zip(llm.generate(prompts, params), expected, strict=True):
        assert [sample.token_ids for sample in completion.samples] == [tokens] * 3
    llm.engine.check_integrity()
