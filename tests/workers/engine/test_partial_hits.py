"""Prefix hits within a block: what is shared ends with the tokens, not with the block."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch

from tests.golden.models import VOCAB_SIZE
from workers.engine.llm import LLM
from workers.engine.sampling_params import SamplingParams
from workers.layers.kv_cache import KVCache
from workers.models.config import ModelConfig

BLOCK = 16
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
PROMPT = Random(3).choices(range(VOCAB_SIZE), k=3 * BLOCK)


def ask(llm: LLM, prompts: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    """Tokens, and how many of each prompt's tokens were cached."""
    completions = llm.generate(prompts, GREEDY)
    llm.engine.check_integrity()
    cached = [completion.cached_prompt_tokens for completion in completions]
    return [completion.samples[0].token_ids for completion in completions], cached


@pytest.mark.parametrize("same", [17, 20, 31, 32, 40, 47, 48])
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
def test_all_equal_tokens_are_shared_and_none_else(
    make_llm: Callable[..., LLM], same: int, kv_cache_dtype: str
) -> None:
    other = [(token + 1) % VOCAB_SIZE for token in PROMPT]
    prompt = PROMPT[:same] + other[same:] + other[:5]
    fresh, _ = ask(make_llm(kv_cache_dtype=kv_cache_dtype), [prompt])
    llm = make_llm(kv_cache_dtype=kv_cache_dtype)
    ask(llm, [PROMPT])
    assert ask(llm, [prompt]) == (fresh, [same])
    again, cached = ask(llm, [PROMPT])  # what was shared is as it was
    assert (again, cached) == (ask(make_llm(kv_cache_dtype=kv_cache_dtype), [PROMPT])[0], [47])


def test_several_at_once_share_one_block_while_it_is_copied(make_llm: Callable[..., LLM]) -> None:
    prompts = [PROMPT[:20] + [token] * 9 for token in range(5)]
    fresh = [ask(make_llm(), [prompt])[0][0] for prompt in prompts]
    llm = make_llm()
    ask(llm, [PROMPT])
    assert ask(llm, prompts) == (fresh, [20] * 5)


def test_a_cache_without_room_for_a_copy_still_serves(
    make_llm: Callable[..., LLM], folder: Path
) -> None:
    """The block that would be copied is evicted instead."""
    num_blocks = 1 + 4  # with the null block: the prompt and its output, and no more
    size = num_blocks * KVCache.bytes_per_block(ModelConfig.read(folder), BLOCK, torch.float32)
    llm = make_llm(kv_cache_bytes=size)
    prompt = PROMPT[:20] + PROMPT[:28]
    fresh, _ = ask(make_llm(), [prompt])
    ask(llm, [PROMPT])
    assert ask(llm, [prompt])[0] == fresh
